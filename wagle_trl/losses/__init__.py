"""Losses, from log-probabilities or logits."""
