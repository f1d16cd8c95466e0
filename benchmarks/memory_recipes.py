"""The recipes whose memory `benchmarks.memory` measures, on equal rows and with gradient checkpointing.

`ours` is NPO with a mask, as a user runs it. `dense` is TRL's SFTTrainer as it comes, AdamW over all weights.
`bitsandbytes` and `gradient_release` are two usual ways to need less: moments in 8 bits, and updating a parameter as
soon as its gradient is complete. Those three see as many rows in a forward pass as unlearning does, which has a retain
row for each forget row.

`published` is WAGLE as published (arXiv 2410.17509, github.com/OPTML-Group/WAGLE): bf16 weights, AdamW over all of
them, a deep copy of the model that gives NPO its reference in every step, forget and retain rows in passes of their own,
losses from the model's own logits, gradients clipped and then multiplied by a boolean mask. It is spared three things:
it has gradient checkpointing, the fused AdamW (without temporaries), and a mask of the blocks alone.
"""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from wagle_trl import MaskConfig, NPOConfig, NPOTrainer
from wagle_trl.losses.objectives import npo_loss
from wagle_trl.masks.scope import scope_parameters
from wagle_trl.planning.planner import CONTEXT_BYTES

PROMPT_TOKENS = 8  # of every row, no part of the loss
LEARNING_RATE = 1e-5
MAX_GRAD_NORM = 1.0
BETA = 0.1


@dataclass(frozen=True)
class Case:
    """
    What is measured in one process. `run` is "attribution", "training" (with a random mask, which needs no attribution)
    or "whole" (one after the other). `rows` counts forget rows; `cap` is in GB.
    """

    shape: str
    recipe: str
    run: str
    rows: int
    length: int
    accumulation: int
    steps: int
    device: str
    cap: float | None = None
    density: float | None = None
    state_bits: int | None = None
    tier: str | None = None
    sweeps: int | None = None


@dataclass
class Run:
    """Phases of a case, ready to start; what the planner says of each, in bytes; where attribution keeps statistics."""

    phases: dict[str, Callable[[], Any]]
    predicted: dict[str, int] = field(default_factory=dict)
    statistics: str | None = None
    note: str = ""


class StepClock(TrainerCallback):
    """Notes when steps end."""

    def __init__(self):
        self.ends: list[float] = []

    def tick(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):
        self.tick()

    @property
    def seconds(self) -> float | None:
        """Median of a step, without the first, which warms up."""
        steps = [end - start for start, end in pairwise(self.ends)]
        return statistics.median(steps) if steps else None


# Ours


def ours(model: PreTrainedModel, case: Case, clock: StepClock, folder: Path) -> Run:
    """NPO with a mask."""
    trainer = NPOTrainer(
        model,
        NPOConfig(
            **trainer_options(case, folder),
            per_device_train_batch_size=case.rows,
            optim="adamw_8bit" if case.state_bits == 8 else "adamw_torch",
            beta=BETA,
        ),
        train_dataset=dataset(model, case, case.rows, seed=0),
        retain_dataset=dataset(model, case, case.rows, seed=1),
        processing_class=tokenizer(model),
        callbacks=[clock],
        mask_config=MaskConfig(
            "random" if case.run == "training" else "fisher_ratio",
            case.density,
            attribution_memory=case.tier or "auto",
            attribution_sweeps=case.sweeps,
        ),
    )
    plan = trainer.memory.make_plan(trainer.memory.capacity())
    beside = CONTEXT_BYTES if case.device == "cuda" else 0  # torch does not count it
    predicted = {"training": plan.training_peak_bytes - beside}
    if plan.tier is not None:
        predicted["attribution"] = plan.attribution_peak_bytes - beside
    phases = {"attribution": trainer.compute_mask, "training": trainer.train}
    if case.run != "whole":
        phases = {case.run: phases[case.run]}
    return Run(phases, predicted, statistics=None if plan.tier is None else str(plan.tier))


# Peers


def dense(model: PreTrainedModel, case: Case, clock: StepClock, folder: Path, **options) -> Run:
    """TRL's SFTTrainer and default optimizer: AdamW with moments in the weights' dtype."""
    trainer = SFTTrainer(
        model,
        SFTConfig(**trainer_options(case, folder), per_device_train_batch_size=2 * case.rows, **options),
        train_dataset=dataset(model, case, 2 * case.rows, seed=0),
        processing_class=tokenizer(model),
        callbacks=[clock],
    )
    return Run({"training": trainer.train})


def bitsandbytes(model: PreTrainedModel, case: Case, clock: StepClock, folder: Path) -> Run:
    """`dense` with moments in 8 bits."""
    return dense(model, case, clock, folder, optim="adamw_bnb_8bit")


def gradient_release(model: PreTrainedModel, case: Case, clock: StepClock, folder: Path) -> Run:
    """AdamW with Kahan sums, in the backward pass, so that full gradients never coexist."""
    from optimi import AdamW, prepare_for_gradient_release

    if case.accumulation > 1:
        raise ValueError("a gradient is gone before the next can be added to it")

    def train() -> None:
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))  # as SFTTrainer does
        optimizer = AdamW(model.parameters(), LEARNING_RATE, gradient_release=True, triton=case.device == "cuda")
        prepare_for_gradient_release(model, optimizer)
        rows = batch(model, case, 2 * case.rows, seed=0)
        train_loop(model, case, clock, optimizer, lambda: model(**rows, fused_lm_head=True).loss)

    return Run({"training": train}, note="no clipping, no exact accumulation; with Kahan sums, its default for bf16")


def published(model: PreTrainedModel, case: Case, clock: StepClock, folder: Path) -> Run:
    """WAGLE as published; see the module."""

    def train() -> None:
        reference = copy.deepcopy(model).eval()
        mask = {parameter: torch.rand(parameter.shape, device=case.device) < 0.05 for parameter in scope(model)}
        optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, fused=True)
        forget, retain = (batch(model, case, case.rows, seed) for seed in (0, 1))

        def loss() -> Tensor:
            forget_loss = model(**forget, use_cache=False).loss
            with torch.no_grad():
                reference_loss = reference(**forget, use_cache=False).loss
            retain_loss = model(**retain, use_cache=False).loss
            return npo_loss(-forget_loss, -reference_loss, BETA, 1) + retain_loss

        def clip_and_mask() -> None:
            clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            for parameter, selected in mask.items():
                parameter.grad *= selected

        train_loop(model, case, clock, optimizer, loss, clip_and_mask)

    return Run({"training": train})


RECIPES: dict[str, Callable[[PreTrainedModel, Case, StepClock, Path], Run]] = {
    "published": published,
    "dense": dense,
    "bitsandbytes": bitsandbytes,
    "gradient_release": gradient_release,
    "ours": ours,
}


# What they share


def trainer_options(case: Case, folder: Path) -> dict[str, Any]:
    """Those that are not TRL's defaults. On a GPU that leaves autocast to bf16, clipping and checkpointing on."""
    on_cpu = case.device == "cpu"
    return dict(
        output_dir=str(folder),
        max_steps=case.steps,
        max_length=case.length,
        gradient_accumulation_steps=case.accumulation,
        learning_rate=LEARNING_RATE,
        bf16=not on_cpu,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def train_loop(
    model: PreTrainedModel,
    case: Case,
    clock: StepClock,
    optimizer: Optimizer,
    loss: Callable[[], Tensor],
    before_step: Callable[[], None] = lambda: None,
) -> None:
    """What the trainers do, for recipes that TRL has no trainer of."""
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for _ in range(case.steps):
        for _ in range(case.accumulation):
            with torch.autocast(case.device, torch.bfloat16, enabled=case.device == "cuda"):
                value = loss() / case.accumulation
            value.backward()
        before_step()
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()


def scope(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    return list(scope_parameters(model).values())


def token_ids(model: PreTrainedModel, rows: int, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.config.vocab_size, (rows, length), generator=generator)


def with_labels(ids: Tensor) -> dict[str, Tensor]:
    labels = ids.clone()
    labels[:, :PROMPT_TOKENS] = -100
    return {"input_ids": ids, "labels": labels}


def dataset(model: PreTrainedModel, case: Case, rows: int, seed: int) -> Dataset:
    """Random rows for one step of `rows` a micro-batch; the trainers go through them again and again."""
    columns = with_labels(token_ids(model, rows * case.accumulation, case.length, seed))
    return Dataset.from_dict({name: values.tolist() for name, values in columns.items()})


def batch(model: PreTrainedModel, case: Case, rows: int, seed: int) -> dict[str, Tensor]:
    columns = with_labels(token_ids(model, rows, case.length, seed))
    columns["attention_mask"] = torch.ones_like(columns["input_ids"])
    return {name: values.to(case.device) for name, values in columns.items()}


def tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerFast:
    """One word a token; the trainers ask for one though the rows are token ids."""
    words = models.WordLevel({f"t{i}": i for i in range(model.config.vocab_size)}, unk_token="t1")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="t0", unk_token="t1", eos_token="t2")
