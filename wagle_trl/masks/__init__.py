"""Masks: which weights, of which model."""
