"""Memory: what there is, what a step takes."""
