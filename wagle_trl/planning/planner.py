"""Predict the peak memory of attribution and of training, by component, before any of it is allocated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from ..attribution.config import MaskConfig, Tier
from ..attribution.scores import get_score
from ..attribution.store_choice import (
    HEADROOM,
    Components,
    choose_tier,
    memory_phases,
    off_device_bytes,
    working_components,
)
from ..losses.per_sample import SampleLosses
from ..masks.mask import WeightMask
from ..masks.scope import embedding_parameters, scope_parameters
from ..memory.simulation import Simulation, Step, WorkingMemory
from ..optim.compact_state import state_bytes
from ..optim.masked_adamw import MOMENTS, STATE_BITS, AccumulatorDtype

FIXED = ("weights", "CUDA context")  # components that exist before a run and do not grow
CONTEXT_BYTES = 500_000_000  # that CUDA and its libraries take besides what torch allocates


@dataclass(frozen=True)
class Reference:
    """
    What training holds of the model before unlearning, for losses that compare whole distributions with it.

    Args:
        rows_per_sample (`int`): Rows per sample whose last hidden states it holds during a step.
        swaps (`bool`): Whether it holds the original values of the selected weights.
        answer_length (`int`, *optional*): Longest answer, of which it holds states, in tokens; by default the whole row.
    """

    rows_per_sample: int
    swaps: bool
    answer_length: int | None = None


@dataclass(frozen=True)
class Setup:
    """
    Options of a run that decide its memory, under their public names.

    Args:
        mask_config ([`MaskConfig`], *optional*): Options of a mask that is still to be computed.
        mask ([`WeightMask`], *optional*): A ready mask. With neither, all trainable weights are trained.
        dtype (`str`): Dtype of the weights.
        optim (`str`): As in `TrainingArguments`.
        per_device_train_batch_size, gradient_accumulation_steps, gradient_checkpointing, bf16, accumulator_dtype:
            As in `TrainingArguments` and [`MaskOptions`].
        max_length (`int`): Longest row, in tokens.
        attribution_length (`int`, *optional*): Longest row that attribution reads, in tokens; by default `max_length`.
        rows_per_sample (`int`, *optional*, defaults to `2`): Rows per sample of a batch: a forget row and a retain row
            in NPO, 1 in fine-tuning.
        reference ([`Reference`], *optional*): What training holds of the model before unlearning.
    """

    mask_config: MaskConfig | None
    mask: WeightMask | None
    dtype: str
    optim: str
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    max_length: int
    bf16: bool = False
    accumulator_dtype: AccumulatorDtype = "float32"
    attribution_length: int | None = None
    rows_per_sample: int = 2
    reference: Reference | None = None


@dataclass(frozen=True)
class Plan:
    """
    Predicted peak memory of a run.

    Args:
        training (`dict[str, int]`): Bytes on the device by component, at the peak of training.
        attribution (`dict[str, int]`, *optional*): Bytes on the device by component, at the peak of attribution, if a
            mask is to be computed.
        tier ([`~attribution.config.Tier`], *optional*): Where attribution keeps its statistics.
        off_device_bytes (`dict[str, int]`, *optional*): Bytes that attribution takes on the `host` or the `disk`.
        capacity (`int`, *optional*): Bytes on the device.
    """

    training: Components
    attribution: Components | None = None
    tier: Tier | None = None
    off_device_bytes: Components = field(default_factory=dict)
    capacity: int | None = None

    @property
    def training_peak_bytes(self) -> int:
        return sum(self.training.values())

    @property
    def attribution_peak_bytes(self) -> int | None:
        return None if self.attribution is None else sum(self.attribution.values())

    @property
    def fits(self) -> bool | None:
        """Whether both peaks fit in the capacity, with headroom for all that is not fixed; `None` without a capacity."""
        if self.capacity is None:
            return None
        fixed = sum(self.training.get(name, 0) for name in FIXED)
        peak = max(self.training_peak_bytes, self.attribution_peak_bytes or 0)
        return peak - fixed <= HEADROOM * (self.capacity - fixed)

    def to_dict(self) -> dict[str, Any]:
        """Dictionary that `wagle plan --json` prints."""
        return {
            "fits": self.fits,
            "capacity_bytes": self.capacity,
            "attribution_peak_bytes": self.attribution_peak_bytes,
            "training_peak_bytes": self.training_peak_bytes,
            "attribution_memory": None if self.tier is None else self.tier.name,
            "attribution_sweeps": None if self.tier is None else self.tier.sweeps,
            "attribution_host_bytes": self.off_device_bytes.get("host", 0),
            "attribution_disk_bytes": self.off_device_bytes.get("disk", 0),
            "attribution": self.attribution,
            "training": self.training,
        }


@dataclass
class Planner:
    """
    Planner of runs with one model.

    Args:
        build (callable): Function of a dtype that returns the model. It runs in a mode in which tensors take no memory.
        losses (callable): Losses of a step of attribution, as in [`~attribution.compute_mask`].
        on_gpu (`bool`): Whether the run is on a GPU, so that the host has memory of its own.
        host (`int`, *optional*): Bytes that attribution may take on the host; by default those available here.
        training_losses (callable, *optional*): Losses of a step of training; by default `losses`.
    """

    build: Callable[[str], nn.Module]
    losses: SampleLosses
    on_gpu: bool
    host: int | None = None
    training_losses: SampleLosses | None = None
    _simulations: dict[str, Simulation] = field(default_factory=dict)
    _steps: dict[tuple[str, Step], WorkingMemory] = field(default_factory=dict)

    def plan(self, setup: Setup, capacity: int | None = None) -> Plan:
        """
        Predict the peaks of a run.

        Args:
            setup ([`Setup`]): Options of the run.
            capacity (`int`, *optional*): Bytes on the device. The tier of attribution is chosen to fit in them.
        """
        training = self._training(setup)
        config = setup.mask_config
        if config is None or get_score(config.mask_score).statistic is None:
            return Plan(training, capacity=capacity)
        return Plan(training, *self._attribution(setup, config, capacity), capacity)

    # Components

    def _simulation(self, dtype: str) -> Simulation:
        if dtype not in self._simulations:
            self._simulations[dtype] = Simulation(lambda: self.build(dtype))
        return self._simulations[dtype]

    def _working(self, dtype: str, step: Step) -> WorkingMemory:
        if (dtype, step) not in self._steps:
            losses = (self.training_losses if step.training else None) or self.losses
            self._steps[dtype, step] = self._simulation(dtype).run(losses, step)
        return self._steps[dtype, step]

    def _fixed(self, setup: Setup) -> Components:
        weights = {id(t): t.nbytes for t in self._simulation(setup.dtype).weights().values()}
        return {"weights": sum(weights.values())} | ({"CUDA context": CONTEXT_BYTES} if self.on_gpu else {})

    def _training(self, setup: Setup) -> Components:
        model = self._simulation(setup.dtype).model
        selected = self._selected(setup, model)
        if selected is None:
            trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
            # transformers sets up 8-bit AdamW so that embeddings keep fp32 moments
            precise = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
            state = {"moments": sum(_dense_moment_bytes(p, setup.optim, p in precise) for p in trainable.values())}
        else:
            trainable = {name: model.get_parameter(name) for name in selected}
            state = self._masked_state(setup, trainable, selected, embedding_parameters(model))
        step = Step(
            rows=setup.rows_per_sample * setup.per_device_train_batch_size,
            length=setup.max_length,
            trainable=frozenset(trainable),
            gradient_checkpointing=setup.gradient_checkpointing,
            training=True,
            keep_gradients=selected is None,
            passes=2 if selected is None and setup.gradient_accumulation_steps > 1 else 1,
            autocast=setup.bf16,
        )
        reference = self._reference(setup, model, trainable, selected)
        return self._fixed(setup) | state | reference | working_components(self._working(setup.dtype, step))

    def _reference(
        self, setup: Setup, model: nn.Module, trainable: Mapping[str, Tensor], selected: dict[str, float] | None
    ) -> Components:
        """Bytes of the reference. Its forward pass keeps nothing for a backward pass, so it takes less than training's."""
        if setup.reference is None:
            return {}
        samples = setup.per_device_train_batch_size * setup.gradient_accumulation_steps  # held for the whole step
        length = min(setup.reference.answer_length or setup.max_length, setup.max_length)
        tokens = samples * setup.reference.rows_per_sample * length
        width = model.config.get_text_config().hidden_size  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        size = tokens * width * getattr(torch, setup.dtype).itemsize
        if setup.reference.swaps and selected is not None:
            size += round(sum(selected[name] * p.element_size() for name, p in trainable.items()))
        head = model.get_output_embeddings().parameters()  # pyright: ignore[reportCallIssue]
        size += sum(p.nbytes for p in head if any(p is trained for trained in trainable.values()))  # a frozen copy
        return {"reference": size}

    def _selected(self, setup: Setup, model: nn.Module) -> dict[str, float] | None:
        """Number of selected weights by parameter. Before attribution, all parameters are assumed equally dense."""
        if setup.mask is not None:
            return {name: setup.mask.num_selected_of(name) for name in setup.mask.bits}
        if setup.mask_config is None:
            return None
        return {
            n: setup.mask_config.mask_density * p.numel() for n, p in self._scope(setup.mask_config, model).items()
        }

    def _scope(self, config: MaskConfig, model: nn.Module) -> dict[str, nn.Parameter]:
        return scope_parameters(model, config.mask_scope, config.mask_exclude)

    def _masked_state(self, setup, parameters, selected, precise) -> Components:
        total: Components = {}
        for name, parameter in parameters.items():
            bits = 32 if parameter in precise else STATE_BITS[setup.optim]
            in_fp32 = setup.gradient_accumulation_steps > 1 and setup.accumulator_dtype == "float32"
            for kind, size in state_bytes(parameter, selected[name], bits, in_fp32, len(MOMENTS)).items():
                total[kind] = total.get(kind, 0) + size
        if not self.on_gpu:
            total["mask"] = sum(p.numel() for p in parameters.values()) // 8
        return total

    def _attribution(
        self, setup: Setup, config: MaskConfig, capacity: int | None
    ) -> tuple[Components, Tier, Components]:
        model = self._simulation(setup.dtype).model
        score, parameters = get_score(config.mask_score), self._scope(config, model)
        step = Step(
            rows=1 if score.statistic == "fisher" else setup.per_device_train_batch_size,
            length=setup.attribution_length or setup.max_length,
            trainable=frozenset(parameters),
            gradient_checkpointing=setup.gradient_checkpointing,
        )
        working, fixed = self._working(setup.dtype, step), self._fixed(setup)
        free = None if capacity is None else capacity - sum(fixed.values())
        tier = config.tier or choose_tier(config, parameters, score, working.peak, free, self.on_gpu, self.host)
        phases = memory_phases(tier, parameters, score, working, self.on_gpu)
        largest = max(phases, key=lambda phase: sum(phase.values()))
        return fixed | largest, tier, off_device_bytes(tier, parameters, score)


def _dense_moment_bytes(parameter: Tensor, optim: str, is_precise: bool) -> int:
    in_8_bits = 4 if is_precise else 1
    return 2 * parameter.numel() * (in_8_bits if STATE_BITS[optim] == 8 else parameter.element_size())


def plan_table(plan: Plan) -> Table:
    """Table of the components of a plan, for the terminal."""
    peaks = {"attribution": plan.attribution, "training": plan.training}
    peaks = {name: components for name, components in peaks.items() if components is not None}
    table = Table("predicted peak, GB", *peaks, title=_title(plan))
    for name in plan.training | (plan.attribution or {}):
        table.add_row(name, *(_gigabytes(components.get(name)) for components in peaks.values()))
    table.add_section()
    table.add_row("total", *(_gigabytes(sum(components.values())) for components in peaks.values()))
    if plan.tier is not None:
        kept = "".join(f", {size / 1e9:.1f} GB on the {place}" for place, size in plan.off_device_bytes.items())
        table.caption = f"attribution memory: {plan.tier}{kept}"
        table.min_width = len(table.caption)  # on one line
    return table


def _title(plan: Plan) -> str:
    if plan.capacity is None:
        return "Memory"
    return f"{'Fits' if plan.fits else 'Does not fit'} {plan.capacity / 1e9:.1f} GB"


def _gigabytes(size: int | None) -> str:
    if not size:
        return "" if size is None else "0"
    return f"{size / 1e9:.2f}" if size >= 5e6 else f"{size / 1e9:.5f}"
