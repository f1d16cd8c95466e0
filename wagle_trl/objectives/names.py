"""The objectives by their names on the command line."""

from ..unlearning.base import UnlearningTrainer
from .alt_po import AltPOTrainer
from .ceu import CEUTrainer
from .grad_diff import GradDiffTrainer
from .gradient_ascent import GradientAscentTrainer
from .idk_ap import IdkAPTrainer
from .idk_dpo import IdkDPOTrainer
from .ihl import IHLTrainer
from .me import METrainer
from .npo import NPOTrainer
from .pdu import PDUTrainer
from .po import POTrainer
from .satimp import SatImpTrainer
from .simnpo import SimNPOTrainer
from .tnpo import TNPOTrainer
from .uce import UCETrainer
from .undial import UNDIALTrainer
from .wga import WGATrainer
from .wtnpo import WTNPOTrainer

OBJECTIVES: dict[str, type[UnlearningTrainer]] = {
    "npo": NPOTrainer,
    "graddiff": GradDiffTrainer,
    "gradient_ascent": GradientAscentTrainer,
    "simnpo": SimNPOTrainer,
    "wga": WGATrainer,
    "satimp": SatImpTrainer,
    "ceu": CEUTrainer,
    "uce": UCETrainer,
    "ihl": IHLTrainer,
    "tnpo": TNPOTrainer,
    "wtnpo": WTNPOTrainer,
    "po": POTrainer,
    "idkdpo": IdkDPOTrainer,
    "altpo": AltPOTrainer,
    "idk_ap": IdkAPTrainer,
    "undial": UNDIALTrainer,
    "me": METrainer,
    "pdu": PDUTrainer,
}
"""Trainer of every objective by its name on the command line."""
