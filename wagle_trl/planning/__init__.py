"""Plans: will it fit, and what to change."""
