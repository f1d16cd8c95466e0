"""Objectives of unlearning, one per file: a config and a trainer."""

from .alt_po import AltPOConfig, AltPOTrainer
from .ceu import CEUConfig, CEUTrainer
from .grad_diff import GradDiffConfig, GradDiffTrainer
from .gradient_ascent import GradientAscentConfig, GradientAscentTrainer
from .idk_ap import IdkAPConfig, IdkAPTrainer
from .idk_dpo import IdkDPOConfig, IdkDPOTrainer
from .npo import NPOConfig, NPOTrainer
from .po import POConfig, POTrainer
from .satimp import SatImpConfig, SatImpTrainer
from .simnpo import SimNPOConfig, SimNPOTrainer
from .tnpo import TNPOConfig, TNPOTrainer
from .uce import UCEConfig, UCETrainer
from .wga import WGAConfig, WGATrainer
from .wtnpo import WTNPOConfig, WTNPOTrainer

__all__ = [
    "AltPOConfig",
    "AltPOTrainer",
    "CEUConfig",
    "CEUTrainer",
    "GradDiffConfig",
    "GradDiffTrainer",
    "GradientAscentConfig",
    "GradientAscentTrainer",
    "IdkAPConfig",
    "IdkAPTrainer",
    "IdkDPOConfig",
    "IdkDPOTrainer",
    "NPOConfig",
    "NPOTrainer",
    "POConfig",
    "POTrainer",
    "SatImpConfig",
    "SatImpTrainer",
    "SimNPOConfig",
    "SimNPOTrainer",
    "TNPOConfig",
    "TNPOTrainer",
    "UCEConfig",
    "UCETrainer",
    "WGAConfig",
    "WGATrainer",
    "WTNPOConfig",
    "WTNPOTrainer",
]
