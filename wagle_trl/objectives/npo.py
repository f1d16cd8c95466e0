"""Negative preference optimization (arXiv 2404.05868)."""

from dataclasses import dataclass, field

from torch import Tensor

from ..losses.objectives import npo_loss
from ..papers import NPO
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import UnlearningConfig, check_positive


@dataclass
class NPOConfig(UnlearningConfig):
    r"""
    Configuration class for the [`NPOTrainer`].

    Parameters:
        beta (`float`, *optional*, defaults to `0.1`):
            Inverse temperature of NPO; as it tends to 0, NPO tends to gradient ascent.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    beta: float = field(
        default=0.1, metadata={"help": "Inverse temperature of NPO; towards 0 it becomes gradient ascent."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "beta")


class NPOTrainer(UnlearningTrainer):
    """
    Trainer for negative preference optimization (arXiv 2404.05868), restricted to a mask where one is given:
    `-(2 / beta) * mean log sigmoid(-beta * (log_probs - reference_log_probs)) + retain_weight * CE(retain)`, with
    log-probabilities summed over the answers.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].

    Example:
    ```python
    >>> trainer = NPOTrainer(model, train_dataset=forget, retain_dataset=retain, mask_config=MaskConfig())
    >>> trainer.train()
    ```
    """

    _name = "NPO"
    _tag_names = ["trl", "wagle-trl", "unlearning", "npo"]
    _paper = NPO
    args: NPOConfig
    config_class = NPOConfig
    reference = "log_probs"

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        forget = batch.forget
        assert forget.reference_log_probs is not None  # `reference` declares them
        reference = forget.reference_log_probs.sum(1)
        return npo_loss(forget.sequence_log_probs, reference, self.args.beta, forget.num_rows)
