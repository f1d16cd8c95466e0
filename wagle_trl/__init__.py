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
    from .trainers import GradDiffConfig, GradDiffTrainer, MaskedSFTConfig, MaskedSFTTrainer, NPOConfig, NPOTrainer

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

_HOMES = {  # of all that is not a trainer
    "SCORES": ".scores",
    "MaskConfig": ".mask_config",
    "MaskedAdamW": ".optimizer",
    "SparseDelta": ".delta",
    "WeightMask": ".mask",
    "compute_mask": ".attribution",
    "load_unlearned": ".hub",
}


def __getattr__(name: str):
    """Imported when asked for: masks and deltas need no transformers, and only trainers need TRL."""
    if name == "__version__":
        return version("wagle-trl")
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, ".trainers"), __name__), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
