"""Losses, from log-probabilities, logits, or hidden states and the LM head."""
