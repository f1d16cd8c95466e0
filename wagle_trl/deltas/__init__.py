"""Deltas: the changes that unlearning made, on disk and in memory."""
