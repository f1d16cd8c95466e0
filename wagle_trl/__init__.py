"""Unlearning for large language models on one GPU, as an extension of TRL."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attribution.compute_mask import compute_mask
    from .attribution.config import MaskConfig
    from .attribution.scores import SCORES
    from .deltas.delta import SparseDelta
    from .hub.load import load_unlearned
    from .masks.mask import WeightMask
    from .optim.masked_adamw import MaskedAdamW
    from .trainers.masked_sft_config import MaskedSFTConfig
    from .trainers.masked_sft_trainer import MaskedSFTTrainer
    from .unlearning.grad_diff import GradDiffConfig, GradDiffTrainer
    from .unlearning.npo import NPOConfig, NPOTrainer

_HOMES = {
    "SCORES": ".attribution.scores",
    "GradDiffConfig": ".unlearning.grad_diff",
    "GradDiffTrainer": ".unlearning.grad_diff",
    "MaskConfig": ".attribution.config",
    "MaskedAdamW": ".optim.masked_adamw",
    "MaskedSFTConfig": ".trainers.masked_sft_config",
    "MaskedSFTTrainer": ".trainers.masked_sft_trainer",
    "NPOConfig": ".unlearning.npo",
    "NPOTrainer": ".unlearning.npo",
    "SparseDelta": ".deltas.delta",
    "WeightMask": ".masks.mask",
    "compute_mask": ".attribution.compute_mask",
    "load_unlearned": ".hub.load",
}

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
    "SparseDelta",
    "WeightMask",
    "compute_mask",
    "load_unlearned",
]


def __getattr__(name: str):
    """Imported when asked for: masks and deltas need no transformers, and only trainers need TRL."""
    if name == "__version__":
        return version("wagle-trl")
    if name in __all__:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
