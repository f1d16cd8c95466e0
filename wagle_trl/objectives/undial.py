"""Unlearning by self-distillation on adjusted logits (arXiv 2402.10052)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..losses.distributions import undial_loss
from ..papers import Paper
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, UnlearningConfig, check_positive


@dataclass
class UNDIALConfig(UnlearningConfig):
    r"""
    Configuration class for the [`UNDIALTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.
        beta (`float`, *optional*, defaults to `30.0`):
            What is taken from the logit of each answer token. The paper tries 3, 10 and 30: of answers that are known by
            heart, less leaves too much.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=0.5, metadata=RETAIN_WEIGHT)
    beta: float = field(default=30.0, metadata={"help": "What is taken from the logit of each answer token."})

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "beta")


class UNDIALTrainer(UnlearningTrainer):
    """
    Trainer for UNDIAL (arXiv 2402.10052): the cross-entropy of the forget rows to what the model said before unlearning, with
    the logits of the answer tokens lowered by `beta`, and `retain_weight * CE(retain)`.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "UNDIAL"
    _tag_names = ["trl", "wagle-trl", "unlearning", "undial"]
    _paper = Paper(
        "2402.10052",
        "UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in Large Language Models",
        "Dong, Yijiang River and Lin, Hongzhou and Belkin, Mikhail and Huerta, Ramon and Vuli{\\'c}, Ivan",
    )
    args: UNDIALConfig
    config_class = UNDIALConfig
    reference = "hidden_states"

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        forget = batch.forget
        return undial_loss(*forget.states, *forget.reference_states, forget.targets, self.args.beta, forget.num_tokens)
