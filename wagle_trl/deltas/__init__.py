"""Deltas: what changed, on disk and in memory."""
