"""Loading from the Hub, publishing to it, and model cards."""
