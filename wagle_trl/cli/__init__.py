"""The `wagle` command."""
