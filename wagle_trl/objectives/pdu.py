"""Primal-dual unlearning (arXiv 2506.05314)."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..losses.distributions import pdu_forget_loss
from ..papers import Paper
from ..unlearning.base import UnlearningTrainer
from ..unlearning.batch import UnlearningBatch
from ..unlearning.config import UnlearningConfig, check_positive


@dataclass
class PDUConfig(UnlearningConfig):
    r"""
    Configuration class for the [`PDUTrainer`].

    Parameters:
        retain_limit (`float`, *optional*, defaults to `0.05`):
            What the retain loss may be at most, epsilon in the paper, in nats per token. It is never negative.
        dual_learning_rate (`float`, *optional*, defaults to `1.0`):
            By how much the weight of the retain rows grows, per step and nat above `retain_limit`.
        dual_warmup_steps (`int`, *optional*, defaults to `0`):
            Steps before the weight begins to change. It begins as `retain_weight`.

    The other parameters are those of [`~unlearning.config.UnlearningConfig`] and [`~trl.SFTConfig`].
    """

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
        self.dual = _DualVariable(self)
        self.add_callback(self.dual)

    @property
    def retain_weight(self) -> float:
        return self.dual.value

    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        return pdu_forget_loss(*batch.forget.states, batch.forget.num_tokens)


class _DualVariable(TrainerCallback, ExportableState):
    """Updates the dual variable after every step, and keeps it in the state of the trainer's checkpoints."""

    def __init__(self, trainer: PDUTrainer):
        self.trainer, self.value = trainer, trainer.args.retain_weight

    def on_train_begin(self, args, state, control, **kwargs):
        saved: Any = state.stateful_callbacks
        own = saved.get(type(self).__name__)
        self.value = own["attributes"]["value"] if own else self.trainer.args.retain_weight

    def on_step_end(self, args, state, control, **kwargs):
        options, metrics = self.trainer.args, self.trainer._metrics["train"]
        metrics["dual"].append(self.value)
        if state.global_step > options.dual_warmup_steps:
            losses = metrics["retain_loss"][-self.trainer.current_gradient_accumulation_steps :]
            excess = sum(losses) / len(losses) - options.retain_limit
            self.value = max(0.0, self.value + options.dual_learning_rate * excess)

    def state(self) -> dict:
        return {"args": {}, "attributes": {"value": self.value}}
