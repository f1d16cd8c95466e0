"""The result of tuning: which run is best, and what it gained over the defaults."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..comparison.trajectory import matched
from ..files.schemas import TunedRun


def merit(run: TunedRun, level: float) -> tuple[int, float]:
    """
    Rank a run. Of the runs that end at or below the level, those are better that kept more of the retain rows where the
    forget probability passed it: at the same forgetting, and before the retain rows are learned once more. The others are
    ranked by how near they came; diverged ones are last.
    """
    if run["diverged"]:
        return 0, 0.0
    left, passed = run["trajectory"]["forget"][-1], matched(run["trajectory"], level)
    return (1, -left) if left > level or passed is None else (2, passed["retain"])


@dataclass(frozen=True)
class Tuning:
    """
    Result of [`~unlearning.tuning.tune`].

    Args:
        runs (`list[dict]`):
            The longest run of every candidate, best first: its `options`, the planned `length`, the `steps` taken, its
            `trajectory` and why it `diverged`, or `None`.
        defaults (`dict`): Options of the candidate that has the trainer's own.
        level (`float`): Answer probability at which the forget rows count as forgotten.
        steps (`int`): Steps of all runs.
        masks (`int`): Masks computed.
        mask (`pathlib.Path`, *optional*): Folder of the mask of the best run; `None` if tuning computed no mask.
    """

    runs: Sequence[TunedRun]
    defaults: Mapping[str, Any]
    level: float
    steps: int
    masks: int
    mask: Path | None

    @property
    def best(self) -> TunedRun:
        """The best run."""
        return self.runs[0]

    @property
    def default_run(self) -> TunedRun:
        """The run with the trainer's own options."""
        return next(run for run in self.runs if run["options"] == self.defaults)

    @property
    def verdict(self) -> str:
        """What tuning gained over the defaults, in one line."""
        best, default = (described(run) for run in (self.best, self.default_run))
        before = self.best["trajectory"]["forget"][0]
        if before <= self.level:
            return f"Nothing to forget: the forget rows begin at {before:.3f}, not above {self.level:g}."
        if merit(self.best, self.level)[0] < 2:
            advice = "give larger --tune_learning_rate, or let runs be longer"
            return f"No run forgot: the best ended at {best}, above {self.level:g}; {advice}."
        if merit(self.default_run, self.level)[0] < 2:
            return f"Better than the defaults, which did not forget ({default}): {best}."
        gain = merit(self.best, self.level)[1] - merit(self.default_run, self.level)[1]
        if gain < 0.001:
            return f"No candidate is better than the defaults: {default}."
        where = f"retain probability where the forget probability passed {self.level:g}"
        return f"Better than the defaults by {gain:.3f} ({where}): {best}, with the defaults {default}."


def described(run: TunedRun) -> str:
    """What a run came to, in a few words."""
    if run["diverged"]:
        return f"diverged after {run['steps']} steps"
    columns = run["trajectory"]
    sets = (f"{name} {columns[name][0]:.3f} -> {columns[name][-1]:.3f}" for name in columns if name != "step")
    return f"{', '.join(sets)} after {run['steps']} steps"
