"""Optimizers that keep state for selected weights only."""
