"""The memory of a run: predicted before it starts, measured after, with advice when it runs out."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.compute
import torch
from datasets import Dataset
from rich.table import Table
from torch import nn
from transformers.utils import logging

from ..memory.available import usable_memory
from ..memory.simulation import copy_without_data
from ..optim.masked_adamw import STATE_BITS
from ..planning.advice import advise
from ..planning.planner import CONTEXT_BYTES, Plan, Planner, Setup, plan_table
from ..terminal import Terminal
from ..text import printable
from .trainer_base import MaskedTrainerBase

logger = logging.get_logger(__name__)


class MemoryWatch:
    """
    Predicts and measures the peak memory of a trainer.

    Args:
        trainer ([`~trainers.mask_mixin.MaskMixin`]): Trainer with its model on the device.
    """

    def __init__(self, trainer: MaskedTrainerBase):
        self.trainer = trainer
        self.plan: Plan | None = None
        self.measured: dict[str, int] = {}

    def make_plan(self, capacity: int | None = None) -> Plan:
        """
        Plan the run with the options and the model of the trainer.

        Args:
            capacity (`int`, *optional*): Available bytes; by default there is no limit.
        """
        return self._planner().plan(self._setup(), capacity)

    def capacity(self) -> int:
        """Count the available bytes as the plan does, with the CUDA context."""
        device = self.trainer.args.device
        return usable_memory(device) + (CONTEXT_BYTES if device.type == "cuda" else 0)

    def predict(self) -> None:
        """Print the plan, if one can be made. Never fails: a run must not stop for a table."""
        if not self._is_plannable():
            return
        try:
            self.plan = self.make_plan(self.capacity())
        except Exception as error:  # a model's own code may raise anything when its tensors hold no data
            logger.warning(f"Cannot predict the memory of this model: {type(error).__name__}: {printable(error)}")
            return
        self._print(plan_table(self.plan))

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Measure the peak of `"attribution"` or `"training"`; an error that memory ran out gets advice."""
        device = self.trainer.args.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(f"{error} {self._advice()}") from error
        self.measured[phase] = peak_memory_bytes(device)
        self._print(self._peak_text(phase))

    def _peak_text(self, phase: str) -> str:
        peak = f"Peak memory of {phase}: {self.measured[phase] / 1e9:.2f} GB"
        if self.trainer.args.device.type != "cuda":
            return f"{peak} resident in the process"
        predicted = getattr(self.plan, f"{phase}_peak_bytes", None)
        return peak if predicted is None else f"{peak}, predicted {(predicted - CONTEXT_BYTES) / 1e9:.2f} GB"

    def _advice(self) -> str:
        try:
            return advise(self._planner(), self._setup(), self.capacity())
        except Exception as error:  # as above; the user must still see that memory ran out
            return f"(No advice: {type(error).__name__}: {error})"

    # What is planned

    def _is_plannable(self) -> bool:
        """Whether tables are shown, and the run has one process, plain weights, AdamW and tokenized rows."""
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
            # Not converted where the dtype stays: adapters may have another dtype than their base
            return copy_without_data(model, None if dtype == _dtype_of(model) else getattr(torch, dtype))

        losses = (self.trainer.planning_losses if on_gpu else None) or self.trainer.sample_losses
        return Planner(build, losses, on_gpu, training_losses=self.trainer.training_losses)

    def _setup(self) -> Setup:
        trainer, args = self.trainer, self.trainer.args
        return Setup(
            mask_config=trainer.mask_config if trainer.mask is None else None,
            mask=trainer.mask,
            dtype=_dtype_of(trainer.model),
            optim=args.optim,
            per_device_train_batch_size=args.per_device_train_batch_size,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            gradient_checkpointing=args.gradient_checkpointing,
            max_length=longest_row(*trainer.streams.values()),
            attribution_length=longest_row(trainer.attributed_dataset, trainer.retain_dataset),
            bf16=args.bf16,
            accumulator_dtype=trainer.mask_options.accumulator_dtype,
            rows_per_sample=len(trainer.streams),
            reference=trainer.planned_reference,
        )

    def _print(self, content: Table | str) -> None:
        if self.trainer.is_world_process_zero() and not self.trainer.args.disable_tqdm:
            Terminal().print(content)


def _dtype_of(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def longest_row(*datasets: Dataset | None) -> int:
    """Length of the longest row, in tokens."""
    columns = [dataset.data.column("input_ids") for dataset in datasets if dataset is not None]
    return max(pyarrow.compute.max(pyarrow.compute.list_value_length(column)).as_py() for column in columns)  # pyright: ignore[reportAttributeAccessIssue]


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of the allocated GPU memory; on a CPU, of the resident memory of the process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
