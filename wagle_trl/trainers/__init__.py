"""Trainers whose updates are restricted to a mask."""

from .masked import MaskedTrainer
from .masked_sft_config import MaskedSFTConfig
from .masked_sft_trainer import MaskedSFTTrainer

__all__ = ["MaskedSFTConfig", "MaskedSFTTrainer", "MaskedTrainer"]
