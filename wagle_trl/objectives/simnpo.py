"""Simple negative preference optimization (arXiv 2410.07163)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..losses.objectives import simnpo_loss
from ..papers import Paper
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, UnlearningConfig, check_positive


@dataclass
class SimNPOConfig(UnlearningConfig):
    r"""
    Configuration class for the [`SimNPOTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.
        beta (`float`, *optional*, defaults to `2.5`):
            Inverse temperature.
        delta (`float`, *optional*, defaults to `0.0`):
            Margin, in nats per token.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=0.5, metadata=RETAIN_WEIGHT)
    beta: float = field(default=2.5, metadata={"help": "Inverse temperature."})
    delta: float = field(default=0.0, metadata={"help": "Margin, in nats per token."})

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "beta")


class SimNPOTrainer(UnlearningTrainer):
    """
    Trainer for SimNPO (arXiv 2410.07163): NPO with the mean over an answer's tokens and without a reference,
    `-(2 / beta) * mean log sigmoid(-beta * mean_log_probs - beta * delta) + retain_weight * CE(retain)`.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "SimNPO"
    _tag_names = ["trl", "wagle-trl", "unlearning", "simnpo"]
    _paper = Paper(
        "2410.07163",
        "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning",
        "Fan, Chongyu and Liu, Jiancheng and Lin, Licong and Jia, Jinghan and Zhang, Ruiqi and Mei, Song and Liu, Sijia",
    )
    args: SimNPOConfig
    config_class = SimNPOConfig
    rate_factor = 2.0

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        forget = batch.forget
        means = forget.sequence_log_probs / forget.answer.sum(1)
        return simnpo_loss(means, self.args.beta, self.args.delta, forget.num_rows)
