"""When unlearning is done: how much may be left of the forget rows, and how much must be there of the retain rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEPT = "kept"  # the metric of [`Goal.kept`], as `metric_for_best_model` names it
_MOVED = 0.01  # movement, as a share of what is left to do


@dataclass(frozen=True)
class Goal:
    """
    What a run of unlearning is to reach. A *point* is a measurement: the answer probabilities of `forget` and `retain`.

    Args:
        forget_probability (`float`, *optional*, defaults to `0.1`):
            Forget probability at or below which the forget rows are forgotten.
        retain_share (`float`, *optional*, defaults to `0.97`):
            Share of the retain probability before the first step that must be there at the same time.
        patience (`int`, *optional*, defaults to `10`):
            Number of measurements without movement after which no more is expected, see [`still`].
    """

    forget_probability: float = 0.1
    retain_share: float = 0.97
    patience: int = 10

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Goal":
        """Take the goal from the options of a run; from its defaults where they name none."""
        return cls(
            options.get("stop_forget_probability") or cls.forget_probability,
            options.get("stop_retain_probability", cls.retain_share),
            options.get("stop_patience", cls.patience),
        )

    def is_forgotten(self, point: Mapping[str, float]) -> bool:
        """Whether the forget rows are forgotten."""
        return point["forget"] <= self.forget_probability

    def is_reached(self, point: Mapping[str, float], before: Mapping[str, float]) -> bool:
        """Whether the forget rows are forgotten and the retain rows are kept; `before` is the point before the first step."""
        return self.is_forgotten(point) and point["retain"] >= self.retain_share * before["retain"]

    def kept(self, point: Mapping[str, float]) -> float:
        """
        Rate a model; greater is better. The rate is the retain probability of a model that has forgotten, and below zero
        for others: what is left to forget, with a minus.
        """
        return point["retain"] if self.is_forgotten(point) else self.forget_probability - point["forget"]

    def still(self, measured: Iterable[Mapping[str, float]], before: Mapping[str, float]) -> int:
        """
        Count the last measurements in which nothing moved.

        What is left to do is what the forget probability has above its level and, once the forget rows were forgotten,
        what the retain probability lacks, too: before that, it falls in any run. It has moved when it is 1 % less than at
        the last movement, so that a slow but steady fall goes on.

        Args:
            measured (list of `dict[str, float]`): Points in their order.
            before (`dict[str, float]`): Point before the first step.
        """
        count, least, was_forgotten = 0, float("inf"), False
        for point in measured:
            left = max(point["forget"] - self.forget_probability, 0)
            begins_to_mend = self.is_forgotten(point) and not was_forgotten
            was_forgotten |= begins_to_mend
            if was_forgotten:
                left += max(self.retain_share * before["retain"] - point["retain"], 0)
            if begins_to_mend or left <= least * (1 - _MOVED):
                count, least = 0, left
            else:
                count += 1
        return count


def points(trajectory: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """List the measurements of a trajectory, of which [`~comparison.trajectory.trajectory`] makes columns."""
    return [dict(zip(trajectory, values, strict=True)) for values in zip(*trajectory.values(), strict=True)]
