"""The `wagle` command."""

import os

# TRL reports every trainer that is made to the Hub, unless huggingface_hub is imported with this. Set to 0, it does
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
