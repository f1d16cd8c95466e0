"""Evaluate a model under the attacks of [`~wagle_trl.evaluation.attacks`], on the same sets as without them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .attacks import has_bitsandbytes, paraphrased, quantized, relearn, relearn_split
from .metrics import FORGET
from .samples import Row
from .suite import evaluate_sets, summarize_all
from .tofu import EvalOptions

# The forget set shows whether an attack succeeds, the others whether it damages the model
ATTACKED_SETS = (FORGET, "retain", "unseen_retain")

Variant = Literal["relearn", "quantize_int8", "quantize_int4", "paraphrase"]
# Attack -> its variants, which are evaluated one by one
VARIANTS: dict[str, tuple[Variant, ...]] = {
    "relearn": ("relearn",),
    "quantize": ("quantize_int8", "quantize_int4"),
    "paraphrase": ("paraphrase",),
}


@dataclass
class AttackConfig:
    """
    Options of the attacks on an unlearned model.

    Args:
        attack (`list[str]`, *optional*): Any of `"relearn"`, `"quantize"` and `"paraphrase"`; by default none.
        relearn_share, relearn_steps, relearn_learning_rate, relearn_batch_size, relearn_seed: As in
            [`~wagle_trl.evaluation.attacks.relearn`].
    """

    attack: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Evaluate forget and retain rows under attack as well: 'relearn' fine-tunes a copy of the model on "
            "a few forget rows and measures the others (an evaluation that continues after an interruption trains it "
            "again), 'quantize' rounds the weights to 8 and to 4 bits, 'paraphrase' asks the `paraphrased_question` of "
            "the rows.",
            "choices": list(VARIANTS),
        },
    )
    relearn_share: float = field(
        default=0.2, metadata={"help": "Share of the forget rows to relearn; the others are measured."}
    )
    relearn_steps: int = field(default=20, metadata={"help": "Optimizer steps of relearning."})
    relearn_learning_rate: float = field(
        default=1e-4, metadata={"help": "Constant learning rate of relearning, which trains all weights in float32."}
    )
    relearn_batch_size: int = field(default=8, metadata={"help": "Rows per step of relearning."})
    relearn_seed: int = field(default=0, metadata={"help": "Seed of which forget rows are relearned."})

    def __post_init__(self):
        known = ", ".join(VARIANTS)
        if isinstance(self.attack, str) or not set(self.attack) <= set(VARIANTS):
            raise ValueError(f"attack must be a list of {known}, got '{self.attack}'.")
        for name in ("relearn_steps", "relearn_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.relearn_learning_rate > 0:
            raise ValueError(f"relearn_learning_rate must be positive, got {self.relearn_learning_rate}.")

    @property
    def variants(self) -> list[Variant]:
        """Variants of the chosen attacks, of which `"quantize"` has two."""
        return [variant for attack, variants in VARIANTS.items() if attack in self.attack for variant in variants]

    def check(self, sets: Mapping[str, Sequence[Row]]) -> None:
        """Raise a `ValueError`, before any long work, if the rows do not allow the attacks."""
        if self.attack and FORGET not in sets:
            raise ValueError("Attacks need forget rows, but there are none.")
        if "relearn" in self.attack:
            relearn_split(len(sets[FORGET]), self.relearn_share, self.relearn_seed)
        if "paraphrase" in self.attack:
            paraphrased(sets[FORGET], FORGET)


class AttackResult(NamedTuple):
    """
    Result of [`evaluate_attack`].

    Attributes:
        records (`list[dict]`): One record per row, as from [`~wagle_trl.evaluation.suite.evaluate_sets`].
        summary (`dict`): Aggregates of the records, and `rows`, the number of rows of every set. Relearning adds
            `curve`, a list of `{"step", "forget_probability"}` on the forget rows that were not trained on, and
            `relearned_rows`, the indices of the rows that were. Quantization adds `rounding`, `"nearest"` or
            `"bitsandbytes"`.
    """

    records: list[Mapping[str, Any]]
    summary: dict[str, Any]


def evaluate_attack(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Row]],
    variant: Variant,
    config: AttackConfig,
    options: EvalOptions | None = None,
    *,
    folder: str | os.PathLike | None = None,
    progress: bool = True,
) -> AttackResult:
    """
    Evaluate forget and retain rows under one variant of an attack.

    After relearning, only the forget rows that it did not train on are evaluated. Paraphrases are evaluated for the rows
    that have one.

    Args:
        model ([`~transformers.PreTrainedModel`]): Unlearned model; nothing in it is changed.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer; nothing in it is changed.
        sets (`dict[str, list[dict]]`): Set name -> rows. `forget`, `retain` and `unseen_retain` are evaluated.
        variant (`str`): `"relearn"`, `"quantize_int8"`, `"quantize_int4"` or `"paraphrase"`.
        config ([`AttackConfig`]): Options of the attack.
        options ([`~wagle_trl.evaluation.tofu.EvalOptions`], *optional*): Options of the evaluation.
        folder, progress: As in [`~wagle_trl.evaluation.suite.evaluate_sets`]. A later call trains for relearning again.
            It continues from the records in the folder only if the training gives the same weights, bit by bit.

    Returns:
        [`AttackResult`]: Records and aggregates.
    """
    options = options or EvalOptions()
    sets = {name: sets[name] for name in ATTACKED_SETS if name in sets}
    details = {}
    match variant:
        case "relearn":
            model, sets, details = _relearned(model, tokenizer, sets, config, options, progress)
        case "quantize_int8" | "quantize_int4":
            details = {"rounding": "bitsandbytes" if has_bitsandbytes(model) else "nearest"}
            model = quantized(model, 8 if variant == "quantize_int8" else 4)
        case "paraphrase":
            names = [name for name in sets if name == FORGET or any(r.get("paraphrased_question") for r in sets[name])]
            sets = {name: paraphrased(sets[name], name) for name in names}
        case _:
            raise ValueError(f"Unknown attack '{variant}'; expected one of {', '.join(sum(VARIANTS.values(), ()))}.")
    records = evaluate_sets(model, tokenizer, sets, options, folder=folder, progress=progress)
    counts = {name: len(rows) for name, rows in sets.items()}
    return AttackResult(records, summarize_all(records) | {"rows": counts} | details)


def _relearned(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Row]],
    config: AttackConfig,
    options: EvalOptions,
    progress: bool,
) -> tuple[PreTrainedModel, dict[str, Sequence[Row]], dict[str, Any]]:
    curve = relearn(
        model,
        tokenizer,
        sets[FORGET],
        share=config.relearn_share,
        steps=config.relearn_steps,
        learning_rate=config.relearn_learning_rate,
        batch_size=config.relearn_batch_size,
        seed=config.relearn_seed,
        options=options,
        progress=progress,
    )
    points = [
        {"step": step, "forget_probability": probability}
        for step, probability in zip(curve.steps, curve.probabilities, strict=True)
    ]
    rest = [sets[FORGET][i] for i in curve.rest]
    return curve.model, {**sets, FORGET: rest}, {"curve": points, "relearned_rows": curve.trained}
