"""Unlearning for large language models on one GPU, as an extension of TRL."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from .attribution import compute_mask
from .mask import WeightMask
from .mask_config import MaskConfig
from .optimizer import MaskedAdamW
from .scores import SCORES

if TYPE_CHECKING:
    from .trainers import (
        GradDiffConfig,
        GradDiffTrainer,
        MaskedSFTConfig,
        MaskedSFTTrainer,
        NPOConfig,
        NPOTrainer,
    )

__all__ = [
    "SCORES",
    "GradDiffConfig",
    "GradDiffTrainer",
    "MaskConfig",
    "MaskedAdamW",
    "MaskedSFTConfig",
    "MaskedSFTTrainer",
    "NPOConfig",
    "NPOTrainer",
    "WeightMask",
    "compute_mask",
]


def __getattr__(name: str):
    """Trainers are imported when asked for: masks and the optimizer need no TRL."""
    if name == "__version__":
        return version("wagle-trl")
    if name in __all__:
        return getattr(import_module(".trainers", __name__), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
