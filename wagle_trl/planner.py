"""Will it fit? Peak memory of attribution and of training, by component, before any of it is allocated."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from .arena import STATE_BITS, state_bytes
from .mask import WeightMask
from .mask_config import TIERS, MaskConfig, Tier
from .scope import embedding_parameters, scope_parameters
from .scores import get_score
from .simulation import Simulation, Step, Working
from .statistics import SampleLosses
from .tiers import STATISTIC_BYTES, split_evenly

CONTEXT_BYTES = 500_000_000  # of CUDA and its libraries, beside what torch allocates
MAX_QUICK_SWEEPS = 8  # beyond, adding up on the host is faster: it moves every gradient, but computes it once
_SMALLEST_DENSITY, _SMALLEST_LENGTH = 0.01, 128  # no further down goes advice

Components = dict[str, int]


@dataclass(frozen=True)
class Setup:
    """
    What memory depends on, under the names of the options that say it.

    Args:
        mask_config ([`MaskConfig`], *optional*): A mask that is yet to be computed.
        mask ([`WeightMask`], *optional*): A ready mask. With neither, all trainable weights train.
        dtype (`str`, *optional*): Of the weights; by default as the model is built.
        optim (`str`): As in `TrainingArguments`.
        per_device_train_batch_size, gradient_accumulation_steps, gradient_checkpointing, bf16: Likewise.
        max_length (`int`): Longest row, in tokens.
        rows_a_sample (`int`, *optional*, defaults to `2`): A forget row and a retain row; 1 in fine-tuning.
    """

    mask_config: MaskConfig | None
    mask: WeightMask | None
    dtype: str | None
    optim: str
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    max_length: int
    bf16: bool = False
    rows_a_sample: int = 2


@dataclass(frozen=True)
class Plan:
    """
    Predicted peaks.

    Args:
        training (`dict[str, int]`): Bytes on the device by component, at the peak of training.
        attribution (`dict[str, int]`, *optional*): Likewise of attribution, where a mask is to be computed.
        tier ([`~tiers.Tier`], *optional*): Where attribution keeps its statistics.
        capacity (`int`, *optional*): Bytes there are.
    """

    training: Components
    attribution: Components | None = None
    tier: Tier | None = None
    capacity: int | None = None

    @property
    def training_peak_bytes(self) -> int:
        return sum(self.training.values())

    @property
    def attribution_peak_bytes(self) -> int | None:
        return None if self.attribution is None else sum(self.attribution.values())

    @property
    def fits(self) -> bool | None:
        """Whether both peaks are within the capacity, if there is one."""
        peak = max(self.training_peak_bytes, self.attribution_peak_bytes or 0)
        return None if self.capacity is None else peak <= self.capacity

    def to_dict(self) -> dict[str, Any]:
        """As `wagle plan --json` prints it."""
        return {
            "fits": self.fits,
            "capacity_bytes": self.capacity,
            "attribution_peak_bytes": self.attribution_peak_bytes,
            "training_peak_bytes": self.training_peak_bytes,
            "attribution_memory": None if self.tier is None else self.tier.name,
            "attribution_sweeps": None if self.tier is None else self.tier.sweeps,
            "attribution": self.attribution,
            "training": self.training,
        }


@dataclass
class Planner:
    """
    Plans for one model.

    Args:
        build (callable): `dtype or None` to the model; run where tensors get no memory.
        losses (callable): As in [`~attribution.compute_mask`]; what both steps compute.
        on_gpu (`bool`): Whether the run is on a GPU: the host's memory is then another.
    """

    build: Callable[[str | None], nn.Module]
    losses: SampleLosses
    on_gpu: bool
    _simulations: dict[str | None, Simulation] = field(default_factory=dict)
    _steps: dict[tuple[str | None, Step], Working] = field(default_factory=dict)

    def plan(self, setup: Setup, capacity: int | None = None) -> Plan:
        """
        Predict the peaks of a run.

        Args:
            setup ([`Setup`]): The run.
            capacity (`int`, *optional*): Bytes on the device, by which the tier of attribution is chosen.
        """
        training = self._training(setup)
        if setup.mask_config is None or get_score(setup.mask_config.mask_score).statistic is None:
            return Plan(training, capacity=capacity)
        attribution, tier = self._attribution(setup, capacity)
        return Plan(training, attribution, tier, capacity)

    def suggest(self, setup: Setup, capacity: int) -> dict[str, Any] | None:
        """
        The cheapest change of options that makes a run fit.

        Changes that leave the result as it is come first, then those that make it slower, then those that alter it; of
        each as little as needed, and none that turns out not to matter.

        Returns:
            `dict` or `None`: Option -> value, empty if the run fits as it is; `None` if nothing helps.
        """
        fitting = next((s for s in _ladder(setup) if self.plan(s, capacity).fits), None)
        if fitting is None:
            return None
        for group in _CHANGES:
            original = {name: getattr(setup, name) for name in group}
            if self.plan(without := replace(fitting, **original), capacity).fits:
                fitting = without
        return _difference(setup, fitting)

    # Components

    def _simulation(self, dtype: str | None) -> Simulation:
        if dtype not in self._simulations:
            self._simulations[dtype] = Simulation(lambda: self.build(dtype))
        return self._simulations[dtype]

    def _working(self, dtype: str | None, step: Step) -> Working:
        if (dtype, step) not in self._steps:
            self._steps[dtype, step] = self._simulation(dtype).run(self.losses, step)
        return self._steps[dtype, step]

    def _fixed(self, setup: Setup) -> Components:
        weights = {id(t): t.nbytes for t in self._simulation(setup.dtype).weights().values()}
        return {"weights": sum(weights.values())} | ({"CUDA context": CONTEXT_BYTES} if self.on_gpu else {})

    def _training(self, setup: Setup) -> Components:
        model = self._simulation(setup.dtype).model
        selected = self._selected(setup, model)
        if selected is None:
            trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
            state = {"moments": sum(_dense_moment_bytes(p, setup.optim) for p in trainable.values())}
        else:
            trainable = {name: model.get_parameter(name) for name in selected}
            state = self._masked_state(setup, trainable, selected, embedding_parameters(model))
        step = Step(
            rows=setup.rows_a_sample * setup.per_device_train_batch_size,
            length=setup.max_length,
            trainable=frozenset(trainable),
            gradient_checkpointing=setup.gradient_checkpointing,
            training=True,
            keep_gradients=selected is None,
            autocast=setup.bf16,
        )
        return self._fixed(setup) | state | _working_components(self._working(setup.dtype, step))

    def _selected(self, setup: Setup, model: nn.Module) -> dict[str, float] | None:
        """Selected weights by parameter; before attribution, as many everywhere."""
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
            accumulates = setup.gradient_accumulation_steps > 1
            for kind, size in state_bytes(parameter, selected[name], bits, accumulates).items():
                total[kind] = total.get(kind, 0) + size
        if not self.on_gpu:
            total["mask"] = sum(p.numel() for p in parameters.values()) // 8
        return total

    def _attribution(self, setup: Setup, capacity: int | None) -> tuple[Components, Tier]:
        model, config = self._simulation(setup.dtype).model, setup.mask_config
        score, parameters = get_score(config.mask_score), self._scope(config, model)
        step = Step(
            rows=1 if score.statistic == "fisher" else setup.per_device_train_batch_size,
            length=setup.max_length,
            trainable=frozenset(parameters),
            gradient_checkpointing=setup.gradient_checkpointing,
        )
        working, fixed = self._working(setup.dtype, step), self._fixed(setup)
        num_statistics = 1 + score.uses_retain
        free = None if capacity is None else capacity - sum(fixed.values())
        tier = config.tier or choose_tier(config, parameters, num_statistics, working.peak, free, self.on_gpu)
        phases = _phases(tier, parameters, num_statistics, working, self.on_gpu)
        return max((fixed | phase for phase in phases), key=lambda phase: sum(phase.values())), tier


def choose_tier(
    config: MaskConfig,
    parameters: Mapping[str, Tensor],
    num_statistics: int,
    working: int,
    free: int | None,
    on_gpu: bool,
) -> Tier:
    """
    The fastest tier that fits.

    Args:
        config ([`MaskConfig`]): Says which tiers may be chosen.
        parameters (`dict[str, torch.Tensor]`): The scope.
        num_statistics (`int`): Statistics that the score reads.
        working (`int`): Bytes that a step takes beyond the weights and statistics.
        free (`int`, *optional*): Bytes on the device beside the weights; without it, there are enough.
        on_gpu (`bool`): Whether the host's memory is another.

    Returns:
        [`~tiers.Tier`]: If none fits, the one that takes least.
    """
    total = STATISTIC_BYTES * sum(p.numel() for p in parameters.values())
    host = psutil.virtual_memory().available if on_gpu else 0
    allowed = TIERS if config.attribution_memory == "auto" else (config.attribution_memory,)
    needs_host = {"resident": 0, "offload": total if num_statistics > 1 else host + 1, "host": num_statistics * total}
    counts = [count for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if count < len(parameters)]
    sweeps = [Tier("sweeps", count) for count in (*counts, len(parameters))]
    quick = [tier for tier in sweeps if tier.sweeps <= MAX_QUICK_SWEEPS]
    order = [Tier("resident"), Tier("offload"), *quick, Tier("host"), *sweeps]
    order = [tier for tier in order if tier.name in allowed and needs_host.get(tier.name, 0) <= host]
    for tier in order if free is not None else order[:1]:
        phases = _phases(tier, parameters, num_statistics, Working(0, working), on_gpu)
        if free is None or max(sum(phase.values()) for phase in phases) <= free:
            return tier
    return order[-1]


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def _phases(tier: Tier, parameters, num_statistics: int, working: Working, on_gpu: bool) -> list[Components]:
    """Components of adding up and of selecting, beside the weights."""
    numels = [p.numel() for p in parameters.values()]
    total = STATISTIC_BYTES * sum(numels)
    part = STATISTIC_BYTES * max(sum(p.numel() for p in g.values()) for g in split_evenly(parameters, tier.sweeps))
    on_disk = tier.name == "sweeps"
    held = total if tier.name == "offload" else 0 if tier.name == "host" else num_statistics * total
    held = held if on_gpu or on_disk else num_statistics * total  # a CPU's tensors on the host are where they were
    adding = {"statistics": part if on_disk else held} | _working_components(working)
    # One parameter's statistics at a time, and their roots; the masks of the score, of a rival, and both together
    pieces = num_statistics * STATISTIC_BYTES * max(numels)
    selecting = {
        "statistics": (0 if on_disk else held) + pieces,
        "masks": 3 * sum(numels) // 8,
        "candidates": round(100 * sum(numels) ** (2 / 3)),
    }
    return [adding, selecting]


def _working_components(working: Working) -> Components:
    return {"activations": working.kept, "backward pass": working.peak - working.kept}


def _dense_moment_bytes(parameter: Tensor, optim: str) -> int:
    return 2 * parameter.numel() * (1 if STATE_BITS[optim] == 8 else parameter.element_size())


# Groups of options that change together, the cheapest change first
_CHANGES = (
    ("dtype", "bf16"),
    ("gradient_checkpointing",),
    ("optim",),
    ("per_device_train_batch_size", "gradient_accumulation_steps"),
    ("mask_config",),
    ("max_length",),
)


def _ladder(setup: Setup) -> Iterator[Setup]:
    """The setup, and ever cheaper ones, each step on top of those before."""
    yield setup
    if setup.dtype != "bfloat16":
        yield (setup := replace(setup, dtype="bfloat16"))
    if not setup.gradient_checkpointing:
        yield (setup := replace(setup, gradient_checkpointing=True))
    if STATE_BITS[setup.optim] != 8:
        yield (setup := replace(setup, optim="adamw_8bit"))
    while setup.per_device_train_batch_size > 1:
        rows, steps = setup.per_device_train_batch_size, setup.gradient_accumulation_steps
        smaller = {"per_device_train_batch_size": rows // 2, "gradient_accumulation_steps": 2 * steps}
        yield (setup := replace(setup, **smaller))
    while setup.mask_config is not None and setup.mask_config.mask_density / 2 >= _SMALLEST_DENSITY:
        config = replace(setup.mask_config, mask_density=setup.mask_config.mask_density / 2)
        yield (setup := replace(setup, mask_config=config))
    while setup.max_length // 2 >= _SMALLEST_LENGTH:
        yield (setup := replace(setup, max_length=setup.max_length // 2))


def _difference(setup: Setup, other: Setup) -> dict[str, Any]:
    """Options of `other` that differ, under the names that users know."""
    changed = {
        name: getattr(other, name)
        for group in _CHANGES
        for name in group
        if getattr(setup, name) != getattr(other, name)
    }
    if "mask_config" in changed:
        changed["mask_density"] = changed.pop("mask_config").mask_density
    return changed
