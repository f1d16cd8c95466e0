"""The memory of a run: predicted before it starts, measured after, and what to change when there is not enough."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.compute
import torch
from datasets import Dataset
from torch import nn
from transformers.utils import logging

from ..memory.available import usable_memory
from ..memory.simulation import copy_without_data
from ..optim.masked_adamw import STATE_BITS
from ..planning.advice import advise
from ..planning.planner import CONTEXT_BYTES, Plan, Planner, Setup, plan_table
from ..terminal import Terminal
from ..text import printable

logger = logging.get_logger(__name__)


class MemoryWatch:
    """
    Predicts and measures the peaks of a trainer.

    Args:
        trainer ([`~trainers.MaskedTrainer`]): Trainer with its model on the device.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.plan: Plan | None = None
        self.measured: dict[str, int] = {}

    def make_plan(self, capacity: int | None = None) -> Plan:
        """
        Plan of the run as the trainer stands.

        Args:
            capacity (`int`, *optional*): Available bytes; by default as many as it takes.
        """
        return self._planner().plan(self._setup(), capacity)

    def capacity(self) -> int:
        """Available bytes for all that the plan counts, the CUDA context among it."""
        device = self.trainer.args.device
        return usable_memory(device) + (CONTEXT_BYTES if device.type == "cuda" else 0)

    def predict(self) -> None:
        """Print the plan, if one can be made. Never fails: a run must not stop for a table."""
        if not self._is_plannable():
            return
        try:
            self.plan = self.make_plan(self.capacity())
        except Exception as error:  # whatever a model's own code raises when its tensors hold no data
            logger.warning(f"Cannot predict the memory of this model: {type(error).__name__}: {printable(error)}")
            return
        self._print(plan_table(self.plan))

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Measure the peak of `"attribution"` or `"training"`; when memory runs out, say what would help."""
        device = self.trainer.args.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(f"{error} {self._advice()}") from error
        self.measured[phase] = peak_memory_bytes(device)
        self._print(self._comparison(phase))

    def _comparison(self, phase: str) -> str:
        peak = f"Peak memory of {phase}: {self.measured[phase] / 1e9:.2f} GB"
        if self.trainer.args.device.type != "cuda":
            return f"{peak} resident in the process"
        predicted = getattr(self.plan, f"{phase}_peak_bytes", None)
        return peak if predicted is None else f"{peak}, predicted {(predicted - CONTEXT_BYTES) / 1e9:.2f} GB"

    def _advice(self) -> str:
        try:
            return advise(self._planner(), self._setup(), self.capacity())
        except Exception as error:  # as above; the user must see that memory ran out
            return f"(No advice: {type(error).__name__}: {error})"

    # What the plan is of

    def _is_plannable(self) -> bool:
        """Whether a table would be shown, and the run is of one process, plain weights, AdamW and tokenized rows."""
        trainer, args = self.trainer, self.trainer.args
        return (
            not args.disable_tqdm
            and args.world_size == 1
            and args.optim in STATE_BITS
            and not getattr(trainer.model, "is_quantized", False)
            and "input_ids" in (trainer.train_dataset.column_names or ())
        )

    def _planner(self) -> Planner:
        model, on_gpu = self.trainer.model, self.trainer.args.device.type != "cpu"

        def build(dtype: str) -> nn.Module:
            # As it is, where nothing changes: adapters may have another dtype than their base
            return copy_without_data(model, None if dtype == _dtype_of(model) else getattr(torch, dtype))

        losses = self.trainer.planning_losses if on_gpu else None
        return Planner(build, losses or self.trainer.sample_losses, on_gpu)

    def _setup(self) -> Setup:
        trainer, args = self.trainer, self.trainer.args
        trained = [trainer.train_dataset, trainer.retain_dataset if trainer.rows_per_sample == 2 else None]
        return Setup(
            mask_config=trainer.mask_config if trainer.mask is None else None,
            mask=trainer.mask,
            dtype=_dtype_of(trainer.model),
            optim=args.optim,
            per_device_train_batch_size=args.per_device_train_batch_size,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            gradient_checkpointing=args.gradient_checkpointing,
            max_length=longest_row(*trained),
            attribution_length=longest_row(trainer.attributed_dataset, trainer.retain_dataset),
            bf16=args.bf16,
            accumulator_dtype=trainer.mask_options.accumulator_dtype,
            rows_per_sample=trainer.rows_per_sample,
        )

    def _print(self, content) -> None:
        if self.trainer.is_world_process_zero() and not self.trainer.args.disable_tqdm:
            Terminal().print(content)


def _dtype_of(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def longest_row(*datasets: Dataset | None) -> int:
    """Most tokens in a row."""
    columns = [dataset.data.column("input_ids") for dataset in datasets if dataset is not None]
    return max(pyarrow.compute.max(pyarrow.compute.list_value_length(column)).as_py() for column in columns)  # pyright: ignore[reportAttributeAccessIssue]


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of allocated GPU memory, or on a CPU of the process's resident memory since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
