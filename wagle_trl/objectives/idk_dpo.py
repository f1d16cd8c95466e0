"""Direct preference optimization with refusals (arXiv 2404.05868)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..losses.objectives import preference_loss
from ..papers import NPO
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, UnlearningConfig, check_positive


@dataclass
class IdkDPOConfig(UnlearningConfig):
    r"""
    Configuration class for the [`IdkDPOTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.
        beta (`float`, *optional*, defaults to `0.03`):
            Inverse temperature; smaller goes further. The published 0.1 stops where a refusal has become likely, which leaves rows
            that the model knows by heart as they are.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=1.0, metadata=RETAIN_WEIGHT)
    beta: float = field(default=0.03, metadata={"help": "Inverse temperature; smaller goes further."})

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "beta")


class IdkDPOTrainer(UnlearningTrainer):
    """
    Trainer for DPO with refusals (arXiv 2404.05868, section 3): prefer a refusal to the answer,
    `-(2 / beta) * mean log sigmoid(beta * margin) + retain_weight * CE(retain)`, where the margin is that of the refusal's
    log-ratio to the reference over the answer's. The scale is NPO's, twice that of DPO.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "IdkDPO"
    _tag_names = ["trl", "wagle-trl", "unlearning", "idk-dpo"]
    _paper = NPO
    args: IdkDPOConfig
    config_class = IdkDPOConfig
    rate_factor = 2.0
    rows = ("forget", "alternate")
    reference = "log_probs"

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        margins = batch.alternate.log_ratios - batch.forget.log_ratios
        return 2 * preference_loss(margins, self.args.beta, batch.forget.num_rows)
