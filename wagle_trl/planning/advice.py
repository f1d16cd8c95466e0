"""Suggest options to change when a run does not fit in memory."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..optim.masked_adamw import STATE_BITS
from .planner import Planner, Setup

_SMALLEST_DENSITY, _SMALLEST_LENGTH = 0.01, 128  # the smallest values that advice suggests

# Groups of options that change together, the cheapest change first
_CHANGES = (
    ("dtype",),
    ("gradient_checkpointing",),
    ("optim",),
    ("accumulator_dtype",),
    ("per_device_train_batch_size", "gradient_accumulation_steps"),
    ("mask_config",),
    ("max_length",),
)


def suggest(planner: Planner, setup: Setup, capacity: int) -> dict[str, Any] | None:
    """
    Find the cheapest change of options that makes a run fit.

    Changes that cost little are tried first: another tier of attribution, bf16 weights under an fp32 master, gradient
    checkpointing, 8-bit state. Then come a smaller batch with more accumulation steps, a lower density, and shorter
    rows. Each change is as small as possible, and changes that turn out not to be needed are undone.

    Args:
        planner ([`~planning.planner.Planner`]): Planner of the model.
        setup ([`~planning.planner.Setup`]): Options of the run.
        capacity (`int`): Bytes on the device.

    Returns:
        `dict` or `None`: Option -> value. It is empty if the run fits as it is, and `None` if no change makes it fit.
    """
    fitting = next((s for s in _cheaper_setups(setup) if planner.plan(s, capacity).fits), None)
    if fitting is None:
        return None
    while (simpler := _without_one_change(planner, setup, fitting, capacity)) != fitting:
        fitting = simpler
    return _difference(setup, fitting)


def _without_one_change(planner: Planner, setup: Setup, fitting: Setup, capacity: int) -> Setup:
    """Undo the first change that `fitting` does not need; return `fitting` itself if it needs all of them."""
    for group in _CHANGES:
        undone = replace(fitting, **{name: getattr(setup, name) for name in group})
        if undone != fitting and planner.plan(undone, capacity).fits:
            return undone
    return fitting


def advise(planner: Planner, setup: Setup, capacity: int) -> str:
    """
    Advise in one sentence on a run that does not fit, or that ran out of memory although it should have fitted.

    Args:
        planner, setup, capacity: As in [`suggest`].
    """
    changes, plan = suggest(planner, setup, capacity), planner.plan(setup, capacity)
    peak = max(plan.training_peak_bytes, plan.attribution_peak_bytes or 0)
    needs = f"By plan this run needs {peak / 1e9:.1f} of {capacity / 1e9:.1f} GB"
    if changes is None:
        return f"{needs}; no option makes this model fit, it takes a larger GPU or a smaller model."
    if changes:
        return f"{needs}; the cheapest change that makes it fit: {_as_assignments(changes)}."
    spare = next((_difference(setup, s) for s in _cheaper_setups(setup) if s != setup), None)
    less = f"; to take less, set {_as_assignments(spare)}" if spare else ""
    return f"{needs}: it should fit, unless other processes take memory too{less}."


def _as_assignments(changes: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in changes.items())


def _cheaper_setups(setup: Setup) -> Iterator[Setup]:
    """The setup itself, then setups that take ever less memory: each adds one change to those before."""
    yield setup
    config = setup.mask_config
    if config is not None and config.attribution_memory != "auto":
        config = replace(config, attribution_memory="auto", attribution_sweeps=None)
        yield (setup := replace(setup, mask_config=config))
    is_masked = config is not None or setup.mask is not None
    if is_masked and setup.dtype != "bfloat16":  # without a mask there is no fp32 master
        yield (setup := replace(setup, dtype="bfloat16"))
    if not setup.gradient_checkpointing:
        yield (setup := replace(setup, gradient_checkpointing=True))
    if STATE_BITS[setup.optim] != 8:
        yield (setup := replace(setup, optim="adamw_8bit"))
    if setup.accumulator_dtype != "bfloat16":
        yield (setup := replace(setup, accumulator_dtype="bfloat16"))
    rows, steps = setup.per_device_train_batch_size, setup.gradient_accumulation_steps
    for fewer in (n for n in range(rows - 1, 0, -1) if rows % n == 0):
        smaller = {"per_device_train_batch_size": fewer, "gradient_accumulation_steps": rows // fewer * steps}
        yield (setup := replace(setup, **smaller))
    while setup.mask_config is not None and setup.mask_config.mask_density / 2 >= _SMALLEST_DENSITY:
        config = replace(setup.mask_config, mask_density=setup.mask_config.mask_density / 2)
        yield (setup := replace(setup, mask_config=config))
    while setup.max_length // 2 >= _SMALLEST_LENGTH:
        yield (setup := replace(setup, max_length=setup.max_length // 2))


def _difference(setup: Setup, other: Setup) -> dict[str, Any]:
    """Options of `other` that differ from `setup`, under their public names."""
    changed = {
        name: getattr(other, name)
        for group in _CHANGES
        for name in group
        if getattr(setup, name) != getattr(other, name)
    }
    if (config := changed.pop("mask_config", None)) is not None:
        names = ("attribution_memory", "attribution_sweeps", "mask_density")
        changed |= {n: getattr(config, n) for n in names if getattr(config, n) != getattr(setup.mask_config, n)}
    return changed
