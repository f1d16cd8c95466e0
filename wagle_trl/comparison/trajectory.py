"""Trajectories of runs, and what they kept at the same forget probability.

The end points of two runs say little: the run that kept more may have forgotten less. Runs can be compared where their
forget probability passes the same level.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SUFFIX = "_probability"  # of a set's name in the log of a trainer


def trajectory(log_history: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """
    Collect the answer probabilities that an unlearning trainer logged, as columns.

    Args:
        log_history (`list[dict]`):
            `log_history` of the trainer's state, or of its `wagle_report.json`.

    Returns:
        `dict[str, list[float]]`: `step`, `forget`, and every other set that each measurement has (`retain`,
        `unseen_retain`, ...), one value per measurement. Without measurements, `step` and `forget` are empty. The
        measurement of weights that were loaded at the end, which are no next step, is left out.
    """
    entries = [entry for entry in log_history if f"forget{SUFFIX}" in entry and "loaded_step" not in entry]
    first = [
        key for key in (entries[0] if entries else ()) if key != f"step{SUFFIX}"
    ]  # the column of steps has this name
    shared = [key for key in first if all(key in entry for entry in entries)]
    names = {"forget": None} | {key.removesuffix(SUFFIX): None for key in shared if key.endswith(SUFFIX)}
    columns = {name: [entry[f"{name}{SUFFIX}"] for entry in entries] for name in names}
    return {"step": [entry["step"] for entry in entries]} | columns


def probabilities(entry: Mapping[str, Any]) -> dict[str, float]:
    """Select the answer probabilities of an entry of the log, by set."""
    return {name.removesuffix(SUFFIX): value for name, value in entry.items() if name.endswith(SUFFIX)}


def matched(trajectory: Mapping[str, Sequence[float]], level: float) -> dict[str, float] | None:
    """
    Interpolate a trajectory where the forget probability first comes down to a level.

    Args:
        trajectory (`dict[str, list[float]]`):
            Columns of [`trajectory`].
        level (`float`):
            Forget probability, between `0.0` and `1.0`.

    Returns:
        `dict[str, float]`: Values of `step` and every set but `forget` at that point, by linear interpolation in the
        forget probability between the measurements before and after. `None` if the forget probability does not reach
        the level, or starts below it.

    Example:

    ```python
    >>> from wagle_trl.comparison.trajectory import matched

    >>> matched({"step": [0, 10], "forget": [1.0, 0.0], "retain": [1.0, 0.5]}, level=0.5)
    {'step': 5.0, 'retain': 0.75}
    ```
    """
    forget = trajectory["forget"]
    after = next((i for i, value in enumerate(forget) if value <= level), None)
    if not after:
        return None
    share = (forget[after - 1] - level) / (forget[after - 1] - forget[after])
    return {
        name: values[after - 1] + share * (values[after] - values[after - 1])
        for name, values in trajectory.items()
        if name != "forget"
    }
