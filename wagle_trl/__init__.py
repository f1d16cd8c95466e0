"""Unlearning for large language models on one GPU, as an extension of TRL."""

from importlib.metadata import version

from .attribution import compute_mask
from .mask import WeightMask
from .mask_config import MaskConfig
from .optimizer import MaskedAdamW
from .scores import SCORES
from .trainers import (
    GradDiffConfig,
    GradDiffTrainer,
    MaskedSFTConfig,
    MaskedSFTTrainer,
    NPOConfig,
    NPOTrainer,
)

__version__ = version("wagle-trl")

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
