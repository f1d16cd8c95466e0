"""Plans: whether a run fits in memory, and which options to change if it does not."""
