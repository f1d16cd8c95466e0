"""Losses: log-probabilities or logits in, numbers out."""
