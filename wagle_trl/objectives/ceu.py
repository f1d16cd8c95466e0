"""Cross-entropy unlearning (arXiv 2503.01224)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..losses.objectives import unlikelihood_loss
from ..papers import Paper
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, UnlearningConfig


@dataclass
class CEUConfig(UnlearningConfig):
    r"""
    Configuration class for the [`CEUTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `5.0`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.
        skip_first_token (`bool`, *optional*, defaults to `True`):
            Whether the first token of an answer, often certain, does not count.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=5.0, metadata=RETAIN_WEIGHT)
    skip_first_token: bool = field(
        default=True, metadata={"help": "Whether the first token of an answer, often certain, does not count."}
    )


class CEUTrainer(UnlearningTrainer):
    """
    Trainer for CE-U (arXiv 2503.01224): cross-entropy to what the model would say without the target token. Its gradient is that
    of unlikelihood training (arXiv 1908.04319), which this is: `mean -log(1 - p) + retain_weight * CE(retain)`. The logged value is
    that of unlikelihood.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "CE-U"
    _tag_names = ["trl", "wagle-trl", "unlearning", "ce-u"]
    _paper = Paper(
        "2503.01224",
        "CE-U: Cross Entropy Unlearning",
        "Yang, Bo",
    )
    args: CEUConfig
    config_class = CEUConfig

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        forget = batch.forget
        if not self.args.skip_first_token:
            return unlikelihood_loss(forget.log_probs, forget.answer, forget.num_tokens)
        later = forget.answer & (forget.answer.cumsum(1) > 1)
        return unlikelihood_loss(forget.log_probs, later, forget.num_tokens - forget.num_rows)
