"""Primal-dual unlearning (arXiv 2506.05314)."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from ..losses.distributions import pdu_forget_loss
from ..papers import Paper
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import RETAIN_WEIGHT, UnlearningConfig, check_positive

_STATE = "dual_variable"  # in the state of the trainer


@dataclass
class PDUConfig(UnlearningConfig):
    r"""
    Configuration class for the [`PDUTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `5.0`):
            Weight of the loss on the retain rows; `benchmarks/OBJECTIVES.md` has what it does.
        retain_limit (`float`, *optional*, defaults to `0.05`):
            What the retain loss may be at most, epsilon in the paper, in nats per token. It is never negative.
        dual_learning_rate (`float`, *optional*, defaults to `1.0`):
            By how much the weight of the retain rows grows, per step and nat above `retain_limit`.
        dual_warmup_steps (`int`, *optional*, defaults to `0`):
            Steps before the weight begins to change. It begins as `retain_weight`.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

    retain_weight: float = field(default=5.0, metadata=RETAIN_WEIGHT)
    retain_limit: float = field(
        default=0.05, metadata={"help": "What the retain loss may be at most, in nats per token."}
    )
    dual_learning_rate: float = field(
        default=1.0,
        metadata={"help": "By how much the weight of the retain rows grows, per step and nat above retain_limit."},
    )
    dual_warmup_steps: int = field(
        default=0, metadata={"help": "Steps before this weight, which begins as retain_weight, changes."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "retain_limit", "dual_learning_rate", "retain_weight")
        if self.dual_warmup_steps < 0:
            raise ValueError(f"dual_warmup_steps must not be negative, got {self.dual_warmup_steps}.")


class PDUTrainer(UnlearningTrainer):
    """
    Trainer for PDU (arXiv 2506.05314): flat logits on the forget rows, under the constraint that the retain loss stays below
    `retain_limit`: `mean (max logit - mean logit)^2 + dual * (CE(retain) - retain_limit)`, where the dual variable grows
    while the constraint is broken, and falls to 0 while it holds, after every optimizer step.

    The arguments are those of [`~unlearning.base.UnlearningTrainer`].
    """

    _name = "PDU"
    _tag_names = ["trl", "wagle-trl", "unlearning", "pdu"]
    _paper = Paper(
        "2506.05314",
        "Constrained Entropic Unlearning: A Primal-Dual Framework for Large Language Models",
        "Entesari, Taha and Hatami, Arman and Khaziev, Rinat and Ramakrishna, Anil and Fazlyab, Mahyar",
    )
    args: PDUConfig
    config_class = PDUConfig
    distributions = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dual = self.args.retain_weight  # the dual variable, lambda in the paper
        self.retain_losses: list[Tensor] = []  # of the micro-batches of the step, whose sum is that of the step
        self.add_callback(_DualAscent(self))

    @property
    def retain_weight(self) -> float:
        return self.dual

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        return pdu_forget_loss(*batch.forget.states, batch.forget.num_tokens)

    def retain_loss(self, batch: UnlearningBatch) -> Tensor:
        loss = super().retain_loss(batch)
        self.retain_losses.append(loss.detach())
        return loss


class _DualAscent(TrainerCallback):
    """Updates the dual variable after every optimizer step. Checkpoints keep it in the state of the trainer."""

    def __init__(self, trainer: PDUTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        saved: Any = state.stateful_callbacks
        self.trainer.dual = saved.get(_STATE, {}).get("value", self.trainer.dual)
        self.trainer.retain_losses.clear()  # an interrupted run may have left some

    def on_step_end(self, args, state, control, **kwargs):
        trainer, options = self.trainer, self.trainer.args
        trainer._metrics["train"]["dual"].append(trainer.dual)
        if state.global_step > options.dual_warmup_steps:
            retain_loss = trainer._gather(torch.stack(trainer.retain_losses).sum()).sum().item()
            excess = retain_loss - options.retain_limit
            trainer.dual = max(0.0, trainer.dual + options.dual_learning_rate * excess)
        trainer.retain_losses.clear()
        kept: Any = state.stateful_callbacks
        kept[_STATE] = {"value": trainer.dual}
