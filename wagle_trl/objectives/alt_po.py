"""Alternate preference optimization (arXiv 2409.13474)."""

from dataclasses import dataclass, field

from ..papers import Paper
from ..unlearning.config import RETAIN_WEIGHT
from .idk_dpo import IdkDPOConfig, IdkDPOTrainer


@dataclass
class AltPOConfig(IdkDPOConfig):
    r"""
    Configuration class for the [`AltPOTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `5.0`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.
        beta (`float`, *optional*, defaults to `0.1`):
            Inverse temperature.

    The other parameters are those of [`IdkDPOConfig`].
    """

    retain_weight: float = field(default=5.0, metadata=RETAIN_WEIGHT)
    beta: float = field(default=0.1, metadata={"help": "Inverse temperature."})


class AltPOTrainer(IdkDPOTrainer):
    """
    Trainer for AltPO (arXiv 2409.13474): [`IdkDPOTrainer`] with other plausible answers in place of refusals, in the column
    `alternate` of the forget rows. `wagle alternates` asks the model itself for them.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "AltPO"
    _tag_names = ["trl", "wagle-trl", "unlearning", "altpo"]
    _paper = Paper(
        "2409.13474",
        "Alternate Preference Optimization for Unlearning Factual Knowledge in Large Language Models",
        "Mekala, Anmol and Dorna, Vineeth and Dubey, Shreya and Lalwani, Abhishek and Koleczek, David and Rungta, Mukund and "
        "Hasan, Sadid and Lobo, Elita",
    )
    args: AltPOConfig
    config_class = AltPOConfig
    rate_factor = 1.0
