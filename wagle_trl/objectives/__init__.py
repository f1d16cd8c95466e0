"""Objectives of unlearning, one per file: a config and a trainer. [`~objectives.names.OBJECTIVES`] lists them."""
