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
    from .masks.info import MaskInfo
    from .masks.mask import WeightMask
    from .objectives.alt_po import AltPOConfig, AltPOTrainer
    from .objectives.ceu import CEUConfig, CEUTrainer
    from .objectives.grad_diff import GradDiffConfig, GradDiffTrainer
    from .objectives.gradient_ascent import GradientAscentConfig, GradientAscentTrainer
    from .objectives.idk_ap import IdkAPConfig, IdkAPTrainer
    from .objectives.idk_dpo import IdkDPOConfig, IdkDPOTrainer
    from .objectives.ihl import IHLConfig, IHLTrainer
    from .objectives.me import MEConfig, METrainer
    from .objectives.npo import NPOConfig, NPOTrainer
    from .objectives.pdu import PDUConfig, PDUTrainer
    from .objectives.po import POConfig, POTrainer
    from .objectives.satimp import SatImpConfig, SatImpTrainer
    from .objectives.simnpo import SimNPOConfig, SimNPOTrainer
    from .objectives.tnpo import TNPOConfig, TNPOTrainer
    from .objectives.uce import UCEConfig, UCETrainer
    from .objectives.undial import UNDIALConfig, UNDIALTrainer
    from .objectives.wga import WGAConfig, WGATrainer
    from .objectives.wtnpo import WTNPOConfig, WTNPOTrainer
    from .optim.masked_adamw import MaskedAdamW
    from .trainers.mask_mixin import MaskMixin
    from .trainers.mask_options import MaskOptions
    from .trainers.masked_sft import MaskedSFTConfig, MaskedSFTTrainer
    from .trainers.masked_trainers import (
        MaskedDPOConfig,
        MaskedDPOTrainer,
        MaskedGRPOConfig,
        MaskedGRPOTrainer,
        MaskedKTOConfig,
        MaskedKTOTrainer,
        MaskedRewardConfig,
        MaskedRewardTrainer,
        MaskedTrainer,
        MaskedTrainingArguments,
    )
    from .unlearning.base import UnlearningTrainer
    from .unlearning.config import UnlearningConfig
    from .unlearning.tuning import tune

_HOMES = {
    "AltPOConfig": ".objectives.alt_po",
    "AltPOTrainer": ".objectives.alt_po",
    "CEUConfig": ".objectives.ceu",
    "CEUTrainer": ".objectives.ceu",
    "GradDiffConfig": ".objectives.grad_diff",
    "GradDiffTrainer": ".objectives.grad_diff",
    "GradientAscentConfig": ".objectives.gradient_ascent",
    "GradientAscentTrainer": ".objectives.gradient_ascent",
    "IHLConfig": ".objectives.ihl",
    "IHLTrainer": ".objectives.ihl",
    "IdkAPConfig": ".objectives.idk_ap",
    "IdkAPTrainer": ".objectives.idk_ap",
    "IdkDPOConfig": ".objectives.idk_dpo",
    "IdkDPOTrainer": ".objectives.idk_dpo",
    "MEConfig": ".objectives.me",
    "METrainer": ".objectives.me",
    "MaskConfig": ".attribution.config",
    "MaskInfo": ".masks.info",
    "MaskMixin": ".trainers.mask_mixin",
    "MaskOptions": ".trainers.mask_options",
    "MaskedAdamW": ".optim.masked_adamw",
    "MaskedDPOConfig": ".trainers.masked_trainers",
    "MaskedDPOTrainer": ".trainers.masked_trainers",
    "MaskedGRPOConfig": ".trainers.masked_trainers",
    "MaskedGRPOTrainer": ".trainers.masked_trainers",
    "MaskedKTOConfig": ".trainers.masked_trainers",
    "MaskedKTOTrainer": ".trainers.masked_trainers",
    "MaskedRewardConfig": ".trainers.masked_trainers",
    "MaskedRewardTrainer": ".trainers.masked_trainers",
    "MaskedSFTConfig": ".trainers.masked_sft",
    "MaskedSFTTrainer": ".trainers.masked_sft",
    "MaskedTrainer": ".trainers.masked_trainers",
    "MaskedTrainingArguments": ".trainers.masked_trainers",
    "NPOConfig": ".objectives.npo",
    "NPOTrainer": ".objectives.npo",
    "PDUConfig": ".objectives.pdu",
    "PDUTrainer": ".objectives.pdu",
    "POConfig": ".objectives.po",
    "POTrainer": ".objectives.po",
    "SCORES": ".attribution.scores",
    "SatImpConfig": ".objectives.satimp",
    "SatImpTrainer": ".objectives.satimp",
    "SimNPOConfig": ".objectives.simnpo",
    "SimNPOTrainer": ".objectives.simnpo",
    "SparseDelta": ".deltas.delta",
    "TNPOConfig": ".objectives.tnpo",
    "TNPOTrainer": ".objectives.tnpo",
    "UCEConfig": ".objectives.uce",
    "UCETrainer": ".objectives.uce",
    "UNDIALConfig": ".objectives.undial",
    "UNDIALTrainer": ".objectives.undial",
    "UnlearningConfig": ".unlearning.config",
    "UnlearningTrainer": ".unlearning.base",
    "WGAConfig": ".objectives.wga",
    "WGATrainer": ".objectives.wga",
    "WTNPOConfig": ".objectives.wtnpo",
    "WTNPOTrainer": ".objectives.wtnpo",
    "WeightMask": ".masks.mask",
    "compute_mask": ".attribution.compute_mask",
    "load_unlearned": ".hub.load",
    "tune": ".unlearning.tuning",
}

__all__ = [
    "SCORES",
    "AltPOConfig",
    "AltPOTrainer",
    "CEUConfig",
    "CEUTrainer",
    "GradDiffConfig",
    "GradDiffTrainer",
    "GradientAscentConfig",
    "GradientAscentTrainer",
    "IHLConfig",
    "IHLTrainer",
    "IdkAPConfig",
    "IdkAPTrainer",
    "IdkDPOConfig",
    "IdkDPOTrainer",
    "MEConfig",
    "METrainer",
    "MaskConfig",
    "MaskInfo",
    "MaskMixin",
    "MaskOptions",
    "MaskedAdamW",
    "MaskedDPOConfig",
    "MaskedDPOTrainer",
    "MaskedGRPOConfig",
    "MaskedGRPOTrainer",
    "MaskedKTOConfig",
    "MaskedKTOTrainer",
    "MaskedRewardConfig",
    "MaskedRewardTrainer",
    "MaskedSFTConfig",
    "MaskedSFTTrainer",
    "MaskedTrainer",
    "MaskedTrainingArguments",
    "NPOConfig",
    "NPOTrainer",
    "PDUConfig",
    "PDUTrainer",
    "POConfig",
    "POTrainer",
    "SatImpConfig",
    "SatImpTrainer",
    "SimNPOConfig",
    "SimNPOTrainer",
    "SparseDelta",
    "TNPOConfig",
    "TNPOTrainer",
    "UCEConfig",
    "UCETrainer",
    "UNDIALConfig",
    "UNDIALTrainer",
    "UnlearningConfig",
    "UnlearningTrainer",
    "WGAConfig",
    "WGATrainer",
    "WTNPOConfig",
    "WTNPOTrainer",
    "WeightMask",
    "compute_mask",
    "load_unlearned",
    "tune",
]


def __getattr__(name: str):
    """Import a public name when it is first used: masks and deltas need no transformers, and only trainers need TRL."""
    if name == "__version__":
        return version("wagle-trl")
    if name in __all__:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
