"""The `wagle` command."""

import os

# TRL tells the Hub of every trainer that is made. Read when huggingface_hub is imported; 0 in the environment lets it
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
