"""Memory: how much is available, and how much a step takes."""
