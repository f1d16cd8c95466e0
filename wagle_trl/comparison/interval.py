"""Means over seeds with 95 % t-intervals."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """
    Mean of the runs that have a number, and its 95 % t-interval.

    Args:
        mean (`float`): Mean.
        half (`float`, *optional*): Half the width of the interval; `None` with one value.
        count (`int`): Number of runs that have the number.
        total (`int`): Number of runs of the group.
    """

    mean: float
    half: float | None
    count: int
    total: int

    @classmethod
    def of(cls, values: Iterable[float], total: int | None = None) -> "Interval":
        """Compute the interval of at least one value."""
        values = [float(value) for value in values]
        with np.errstate(over="ignore", invalid="ignore"):  # infinite values have an infinite mean
            mean, half = float(np.mean(values)), None
            if len(values) > 1:
                half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
        return cls(mean, half, len(values), len(values) if total is None else total)

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half is None else f"{self.mean:.3f} ± {self.half:.3f}"


def intervals(rows: Sequence[Mapping[str, object]]) -> dict[str, Interval]:
    """Compute the interval of every number that some of `rows` have, by name."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if is_number(value):
                found.setdefault(name, []).append(float(value))  # pyright: ignore[reportArgumentType]
    return {name: Interval.of(values, len(rows)) for name, values in found.items()}


def is_number(value: object) -> bool:
    """Whether a value of a file is a number with a mean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def plain_numbers(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Convert numbers for `--json`: an interval is `mean - ci95` to `mean + ci95`, of `n` runs."""
    return {
        name: {"mean": value.mean, "ci95": value.half, "n": value.count} if isinstance(value, Interval) else value
        for name, value in numbers.items()
    }
