"""Objectives of unlearning, one per file: a config and a trainer."""

from .alt_po import AltPOConfig, AltPOTrainer
from .ceu import CEUConfig, CEUTrainer
from .grad_diff import GradDiffConfig, GradDiffTrainer
from .gradient_ascent import GradientAscentConfig, GradientAscentTrainer
from .idk_ap import IdkAPConfig, IdkAPTrainer
from .idk_dpo import IdkDPOConfig, IdkDPOTrainer
from .ihl import IHLConfig, IHLTrainer
from .me import MEConfig, METrainer
from .npo import NPOConfig, NPOTrainer
from .pdu import PDUConfig, PDUTrainer
from .po import POConfig, POTrainer
from .satimp import SatImpConfig, SatImpTrainer
from .simnpo import SimNPOConfig, SimNPOTrainer
from .tnpo import TNPOConfig, TNPOTrainer
from .uce import UCEConfig, UCETrainer
from .undial import UNDIALConfig, UNDIALTrainer
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
    "IHLConfig",
    "IHLTrainer",
    "IdkAPConfig",
    "IdkAPTrainer",
    "IdkDPOConfig",
    "IdkDPOTrainer",
    "MEConfig",
    "METrainer",
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
    "TNPOConfig",
    "TNPOTrainer",
    "UCEConfig",
    "UCETrainer",
    "UNDIALConfig",
    "UNDIALTrainer",
    "WGAConfig",
    "WGATrainer",
    "WTNPOConfig",
    "WTNPOTrainer",
]
