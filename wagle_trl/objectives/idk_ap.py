"""Refusals with answer preservation (arXiv 2410.08109)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..losses.objectives import cross_entropy
from ..papers import CLOSER_LOOK
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, RetainLossName, UnlearningConfig


@dataclass
class IdkAPConfig(UnlearningConfig):
    r"""
    Configuration class for the [`IdkAPTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `50.0`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.
        retain_loss (`str`, *optional*, defaults to `"answer_preservation"`):
            Loss on the retain rows, as in the other objectives.
        preservation_beta (`float`, *optional*, defaults to `0.05`):
            Inverse temperature of the preservation. At the published 0.1 it is satisfied as soon as an answer is somewhat more
            likely than a refusal, and short answers are lost.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=50.0, metadata=RETAIN_WEIGHT)

    retain_loss: RetainLossName = field(
        default="answer_preservation", metadata={"help": "Loss on the retain rows, as in the other objectives."}
    )
    preservation_beta: float = field(default=0.05, metadata={"help": "Inverse temperature of answer_preservation."})


class IdkAPTrainer(UnlearningTrainer):
    """
    Trainer for IDK+AP (arXiv 2410.08109): learn to refuse the forget rows, and prefer the answers of the retain rows to
    refusals, `CE(alternate) + retain_weight * AP(retain, retain_refusal)`.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "IDK+AP"
    _tag_names = ["trl", "wagle-trl", "unlearning", "idk-ap"]
    _paper = CLOSER_LOOK
    args: IdkAPConfig
    config_class = IdkAPConfig
    rows = ("alternate",)

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        return cross_entropy(batch.alternate.log_probs, batch.alternate.num_tokens)
