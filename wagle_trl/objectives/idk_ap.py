"""Refusals with answer preservation (arXiv 2410.08109)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..losses.objectives import cross_entropy
from ..papers import CLOSER_LOOK
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RetainLossName, UnlearningConfig


@dataclass
class IdkAPConfig(UnlearningConfig):
    r"""
    Configuration class for the [`IdkAPTrainer`], with the options of [`~unlearning.config.UnlearningConfig`] and
    [`~trl.SFTConfig`].
    """

    retain_loss: RetainLossName = field(
        default="answer_preservation", metadata={"help": "Loss on the retain rows, as in the other objectives."}
    )


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
