"""Masks: which weights of a model are selected."""
