"""Maximum entropy (arXiv 2410.08109)."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from ..losses.distributions import max_entropy_loss
from ..papers import CLOSER_LOOK
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, UnlearningConfig, check_choice

Direction = Literal["uniform_to_model", "model_to_uniform"]


@dataclass
class MEConfig(UnlearningConfig):
    r"""
    Configuration class for the [`METrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `5.0`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.
        direction (`str`, *optional*, defaults to `"uniform_to_model"`):
            Divergence between the uniform distribution U and the model's p: `"uniform_to_model"`, KL(U || p), as the published
            code; or `"model_to_uniform"`, KL(p || U), which is log V less the entropy and whose gradient vanishes where p is
            certain.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=5.0, metadata=RETAIN_WEIGHT)
    direction: Direction = field(
        default="uniform_to_model",
        metadata={"help": "Divergence: 'uniform_to_model', KL(U || p), or 'model_to_uniform', KL(p || U)."},
    )

    def __post_init__(self):
        super().__post_init__()
        check_choice(self, "direction", get_args(Direction))


class METrainer(UnlearningTrainer):
    """
    Trainer for ME+GD (arXiv 2410.08109): the model comes to say nothing in particular of the forget rows,
    `mean KL(U || p) + retain_weight * CE(retain)`, over the answer tokens.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "ME"
    _tag_names = ["trl", "wagle-trl", "unlearning", "me"]
    _paper = CLOSER_LOOK
    args: MEConfig
    config_class = MEConfig
    distributions = True

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        forget = batch.forget
        return max_entropy_loss(*forget.states, forget.num_tokens, self.args.direction)
