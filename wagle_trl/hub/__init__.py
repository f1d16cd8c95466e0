"""The Hub: load, publish, and the card."""
