"""History of a run's training, and which of its measurements are of the saved weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..files.schemas import EarlierTraining, Report
from .trajectory import probabilities, trajectory


@dataclass(frozen=True)
class History:
    """
    History of a run. Steps are counted over all calls of `train` that made the weights.

    Args:
        report ([`~files.schemas.Report`]): Content of `wagle_report.json`; may be empty.
    """

    report: Report

    @property
    def _earlier(self) -> Sequence[EarlierTraining]:
        return self.report.get("earlier_training", ())

    @property
    def _steps_before(self) -> int:
        return sum(part["steps"] for part in self._earlier)

    @property
    def num_calls(self) -> int:
        """Number of calls of `train`."""
        return len(self._earlier) + 1

    @property
    def steps(self) -> int | None:
        """Optimizer steps taken."""
        history = self.report.get("log_history")
        steps = self.report.get("steps", history[-1]["step"] if history else None)
        return None if steps is None else self._steps_before + steps

    @property
    def saved_step(self) -> int | None:
        """Step of the saved weights: an earlier one than the last if the best model was loaded at the end."""
        loaded = self.report.get("loaded_step")
        return self.steps if loaded is None else self._steps_before + loaded

    @cached_property
    def trajectory(self) -> dict[str, list[float]]:
        """Columns of answer probabilities over the steps, see [`~comparison.trajectory.trajectory`]."""
        entries, done = [], 0
        last: EarlierTraining = {"steps": 0, "log_history": self.report.get("log_history", [])}
        for part in (*self._earlier, last):
            entries += [{**entry, "step": done + entry["step"]} for entry in part["log_history"]]
            done += part["steps"]
        return trajectory(entries)

    @property
    def before(self) -> dict[str, float]:
        """Answer probabilities of the weights before the first step, by set; empty without a measurement."""
        first = self._earlier[0]["log_history"] if self._earlier else self.report.get("log_history", ())
        measured = (probabilities(entry) for entry in first if entry["step"] == 0)
        return next(filter(None, measured), {})

    @property
    def saved(self) -> dict[str, float]:
        """Answer probabilities of the saved weights, by set; empty if the last measurement is of other weights."""
        measured = [entry for entry in self.report.get("log_history", ()) if probabilities(entry)]
        fingerprints = {self.report.get(name) for name in ("fingerprint", "measured_fingerprint")} - {None}
        if not measured or len(fingerprints) > 1:
            return {}
        step = self._steps_before + measured[-1].get("loaded_step", measured[-1]["step"])
        return probabilities(measured[-1]) if step == self.saved_step else {}
