"""The options of every objective."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from transformers import SchedulerType

from ..comparison.goal import Goal
from ..data.lengths import LongRows
from ..trainers.masked_sft import MaskedSFTConfig

RetainLossName = Literal["nll", "kl", "answer_preservation"]
RETAIN_WEIGHT = {"help": "Weight of the loss on the retain rows; with 0 they take no part."}  # metadata of the field
ReferenceStates = Literal["auto", "swap", "stored"]


@dataclass
class UnlearningConfig(MaskedSFTConfig):
    r"""
    Options of every unlearning trainer, on top of [`~trl.SFTConfig`]. The defaults of rate, length and schedule are those
    of unlearning, not of fine-tuning; `benchmarks/results/defaults.json` shows what they do.

    With `load_best_model_at_end`, `metric_for_best_model="kept"` keeps the checkpoint with the highest retain probability
    among those that have forgotten, see [`~unlearning.kept.KeptMetric.evaluate`].

    Parameters:
        learning_rate (`float`, *optional*):
            Peak learning rate; by default [`~unlearning.defaults.default_learning_rate`], which depends on what trains.
        num_train_epochs (`float`, *optional*):
            Passes over the forget rows; by default those of [`~unlearning.defaults.default_num_train_epochs`]: 200 steps, and
            at least 5 passes. Forgetting is fast; what it damages of the rest mends in the later steps.
        warmup_steps (`float`, *optional*, defaults to `3`):
            Steps over which the rate rises, or their share of all steps if below 1.
        lr_scheduler_type (`str`, *optional*, defaults to `"constant_with_warmup"`):
            Schedule. A constant rate does not depend on the length, so a run can stop when it is done.
        forget_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the loss on the forget rows. Adam divides by the size of the gradient: only its ratio to
            `retain_weight` counts.
        retain_weight (`float`, *optional*, defaults to `20.0`):
            Weight of the loss on the retain rows. With `0` there are no retain rows in a batch.
        retain_loss (`str`, *optional*, defaults to `"nll"`):
            Loss on the retain rows: `"nll"`, the cross-entropy of their answers, averaged over the tokens; `"kl"`,
            the divergence of what the model says of each token from what it said before unlearning; or `"answer_preservation"`
            (arXiv 2410.08109), which prefers their answers to refusals.
        preservation_beta (`float`, *optional*, defaults to `0.1`):
            Inverse temperature of `retain_loss="answer_preservation"`.
        reference_states (`str`, *optional*, defaults to `"auto"`):
            Where `retain_loss="kl"` and objectives that compare distributions have the last hidden states before unlearning
            from: `"swap"` puts the original values of the selected weights into the model before every step, `"stored"`
            computes them once into a file in the output folder. `"auto"` stores what is visited more than once and takes at
            most 2 GB. Adapters are switched off instead; without a mask, states are stored.
        refusals (`str`, *optional*):
            File with refusals, one per line, for objectives that learn other answers to the forget rows and for
            `retain_loss="answer_preservation"`. A column `alternate` of the rows (a text, or a list of them) goes first.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to switch dropout off, as in TRL's [`~trl.DPOConfig`]: the reference is computed without dropout.
        trajectory_steps (`int`, *optional*, defaults to `10`):
            Number of steps between two measurements of the answer probability of each set, see
            [`~unlearning.trajectory.Trajectory`]; with `0` nothing is measured.
        trajectory_rows (`int`, *optional*, defaults to `32`):
            Number of rows of each set that are measured, at most.
        stop_forget_probability (`float`, *optional*):
            End the run at the first measurement in which the forget probability is at most this and the retain probability
            is back, see `stop_retain_probability`. With `None` or `0`, the default here, every step is taken; the
            command line has `0.1` as its default. A run that begins below it does not end by it.
        stop_retain_probability (`float`, *optional*, defaults to `0.97`):
            Share of the retain probability before the first step that must be there when the run ends. It is that of the
            retain rows trained on: other rows judge and never decide.
        stop_patience (`int`, *optional*, defaults to `10`):
            With `stop_forget_probability`, also end the run when nothing has moved for this number of measurements, see
            [`~comparison.goal.Goal.still`].
        long_rows (`str`, *optional*, defaults to `"refuse"`):
            What to do with rows longer than `max_length`. `"refuse"` refuses forget rows whose answers would be cut, since
            the rest would stay in the model, and truncates retain rows. `"split"` makes several rows of each row of plain
            text, in both sets. `"truncate"` cuts the rows of both sets.
    """

    learning_rate: float | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None,
        metadata={
            "help": "Peak learning rate; by default it depends on what trains: all weights, a mask or adapters."
        },
    )
    num_train_epochs: float | None = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None,
        metadata={"help": "Passes over the forget rows; by default as many as make 200 steps, and at least 5."},
    )
    warmup_steps: float = field(
        default=3, metadata={"help": "Steps over which the rate rises, or their share of all steps if below 1."}
    )
    lr_scheduler_type: SchedulerType | str = field(
        default="constant_with_warmup",
        metadata={"help": "Schedule of the learning rate. A constant one does not depend on the length of the run."},
    )
    forget_weight: float = field(default=1.0, metadata={"help": "Weight of the loss on the forget rows."})
    retain_weight: float = field(default=20.0, metadata=RETAIN_WEIGHT)
    retain_loss: RetainLossName = field(
        default="nll",
        metadata={
            "help": "Loss on the retain rows: 'nll', the cross-entropy of their answers; 'kl', the divergence from what the model "
            "said before unlearning; or 'answer_preservation', which prefers their answers to refusals."
        },
    )
    reference_states: ReferenceStates = field(
        default="auto",
        metadata={
            "help": "Where distributions before unlearning come from: 'swap', the original weights for one forward pass per step; "
            "'stored', a file of hidden states; or 'auto', the cheaper."
        },
    )
    preservation_beta: float = field(default=0.1, metadata={"help": "Inverse temperature of answer_preservation."})
    refusals: str | None = field(
        default=None,
        metadata={
            "help": "File with refusals, one per line, for objectives that learn other answers; a column 'alternate' of the rows "
            "goes first."
        },
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Whether to switch dropout off: the reference is computed without it."}
    )
    trajectory_steps: int = field(
        default=10,
        metadata={
            "help": "Number of steps between two measurements of the answer probability of each set; 0 measures nothing."
        },
    )
    trajectory_rows: int = field(
        default=32, metadata={"help": "Number of rows of each set that are measured, at most."}
    )
    stop_forget_probability: float | None = field(
        default=None,
        metadata={
            "help": "End the run when the forget probability is at most this and the retain probability is back, see "
            "`stop_retain_probability`; 0 takes every step. Off by default in Python, 0.1 on the command line."
        },
    )
    stop_retain_probability: float = field(
        default=Goal.retain_share,
        metadata={
            "help": "Share of the retain probability before the first step that must be there when the run ends, on the retain "
            "rows trained on."
        },
    )
    stop_patience: int = field(
        default=Goal.patience,
        metadata={
            "help": "With stop_forget_probability, also end the run when nothing has moved for this number of measurements."
        },
    )

    long_rows: LongRows = field(
        default="refuse",
        metadata={
            "help": "What to do with rows longer than `max_length`: 'refuse' forget rows whose answers would be cut (retain "
            "rows are cut), 'split' rows of plain text into several rows, in both sets, or 'truncate' rows of both sets."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}.")
        for name in ("forget_weight", "retain_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative or infinite, got {getattr(self, name)}.")
        check_positive(self, "preservation_beta")
        check_choice(self, "retain_loss", get_args(RetainLossName))
        check_choice(self, "reference_states", get_args(ReferenceStates))
        if self.trajectory_steps < 0:
            raise ValueError(f"trajectory_steps must not be negative, got {self.trajectory_steps}.")
        if self.trajectory_rows < 1:
            raise ValueError(f"trajectory_rows must be at least 1, got {self.trajectory_rows}.")
        if not 0 <= (self.stop_forget_probability or 0) < 1:
            raise ValueError(
                f"stop_forget_probability must be at least 0 and below 1, got {self.stop_forget_probability}."
            )
        if not 0 <= self.stop_retain_probability <= 1:
            raise ValueError(f"stop_retain_probability must be from 0 to 1, got {self.stop_retain_probability}.")
        if self.stop_patience < 1:
            raise ValueError(f"stop_patience must be at least 1, got {self.stop_patience}.")
        if self.packing or self.eval_packing or self.padding_free:
            raise ValueError(
                "Unlearning needs one row per sample; set `packing`, `eval_packing` and `padding_free` to False."
            )
        if self.loss_type != "nll" or self.label_smoothing_factor:
            raise ValueError("Unlearning has its own loss; leave `loss_type` and `label_smoothing_factor` alone.")
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"Unlearning pairs forget and retain rows at random, whatever train_sampling_strategy says (it is "
                f"'{self.train_sampling_strategy}'); leave it at 'random'."
            )
        if not self.average_tokens_across_devices:
            raise ValueError(
                "Unlearning divides by the tokens of all devices; leave `average_tokens_across_devices` on."
            )


def check_choice(config: UnlearningConfig, name: str, choices: Sequence[str]) -> None:
    """Refuse an option that is none of its choices."""
    if getattr(config, name) not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got '{getattr(config, name)}'.")


def check_positive(config: UnlearningConfig, *names: str) -> None:
    """Refuse an option that is not a positive, finite number."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {getattr(config, name)}.")
