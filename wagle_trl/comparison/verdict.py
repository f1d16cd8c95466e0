"""What came of a run of unlearning, and what to change, in one line."""

from collections.abc import Mapping, Sequence
from typing import Any

from .goal import KEPT, Goal, points
from .history import History

_NOTHING = 0.02  # share of the way to the goal below which nothing was forgotten
_RECENT = 3  # measurements that tell whether the forget probability still falls


def closing_verdict(history: History, options: Mapping[str, Any]) -> str | None:
    """
    Conclude a run from its history and options, see [`verdict`].

    Args:
        history ([`~comparison.history.History`]): History of the run.
        options (`dict`): Options of its trainer.

    Returns:
        `str`: The line; `None` if forget and retain rows of the saved weights, or of those before the first step, were
        not measured.
    """
    columns, saved = history.trajectory, history.saved
    needed = {"forget", "retain"}
    if not (needed <= columns.keys() and needed <= history.before.keys() and needed <= saved.keys()):
        return None
    longer = "max_steps" if (options.get("max_steps") or 0) > 0 else "num_train_epochs"
    return verdict(columns, Goal.of(options), saved=saved, saved_step=history.saved_step, longer=longer)


def verdict(
    trajectory: Mapping[str, Sequence[float]],
    goal: Goal | None = None,
    *,
    saved: Mapping[str, float] | None = None,
    saved_step: float | None = None,
    longer: str = "num_train_epochs",
) -> str:
    """
    Conclude a trajectory: the answer probabilities before and after, whether that is enough, and what to change.

    Args:
        trajectory (`dict[str, list[float]]`):
            Columns of [`~comparison.trajectory.trajectory`], with `retain`, from step 0 on.
        goal ([`~comparison.goal.Goal`], *optional*): What was to be reached; by default `Goal()`.
        saved (`dict[str, float]`, *optional*): Answer probabilities of the saved weights; by default the last ones.
        saved_step (`int`, *optional*): Step of the saved weights; by default the last one.
        longer (`str`, *optional*, defaults to `"num_train_epochs"`): Name of the option that makes a run longer.

    Example:

    ```python
    >>> from wagle_trl.comparison.verdict import verdict

    >>> verdict({"step": [0, 84], "forget": [0.979, 0.06], "retain": [0.98, 0.97]})
    'forget 0.979 -> 0.06, retain 0.98 -> 0.97: done at step 84'
    ```
    """
    goal, measured = goal or Goal(), points(trajectory)
    before, last = measured[0], measured[-1]
    now = {**(last if saved is None else saved), "step": last["step"] if saved_step is None else saved_step}
    numbers = ", ".join(f"{name} {before[name]:.3g} -> {now[name]:.3g}" for name in ("forget", "retain"))
    if now["step"] < last["step"]:
        numbers += f" (step {now['step']:.0f}, loaded as the best)"
    return f"{numbers}: {_advice(measured, now, goal, longer)}"


def _advice(measured: list[dict[str, float]], now: Mapping[str, float], goal: Goal, longer: str) -> str:
    before, level = measured[0], f"{goal.forget_probability:g}"
    if goal.is_forgotten(before):
        return f"forget was below {level} from the start: check the rows, or set a lower stop_forget_probability"
    done = [point["step"] for point in measured if goal.is_reached(point, before)]
    if goal.is_reached(now, before):
        first = min(done, default=now["step"])
        return f"done at step {now['step']:.0f}" + (f", and first at step {first:.0f}" if first < now["step"] else "")
    if done:
        is_best = now["step"] < measured[-1]["step"]
        cure = f"metric_for_best_model to '{KEPT}'" if is_best else "stop_forget_probability"
        return f"done at step {done[-1]:.0f}, but not in these weights: set {cure}"
    if not goal.is_forgotten(now):
        return _on_forgetting(measured, now, goal, longer)
    halt = _halt(measured, goal)
    lacking = f"forgotten, but retain is at {now['retain']:.3g} of {before['retain']:.3g}{halt}"
    return f"{lacking}: raise retain_weight" + ("" if halt else f" or {longer}")


def _on_forgetting(measured: list[dict[str, float]], now: Mapping[str, float], goal: Goal, longer: str) -> str:
    """Conclude on weights that have not forgotten."""
    before, halt = measured[0], _halt(measured, goal)
    if forgotten := [point["step"] for point in measured if goal.is_forgotten(point)]:
        load = "" if now["step"] < measured[-1]["step"] else "load_best_model_at_end, and "
        cure = f"set {load}metric_for_best_model to '{KEPT}', or lower retain_weight"
        return f"forgotten at step {forgotten[-1]:.0f}, but not in these weights: {cure}"
    if before["forget"] - now["forget"] < _NOTHING * (before["forget"] - goal.forget_probability):
        return f"nothing was forgotten{halt}: raise learning_rate" + ("" if halt else f" or {longer}")
    if goal.still(measured, before) < min(_RECENT, goal.patience):
        return f"still falling: raise {longer}"
    return f"forget no longer falls{halt}: raise learning_rate, or lower retain_weight"


def _halt(measured: list[dict[str, float]], goal: Goal) -> str:
    still = goal.still(measured, measured[0])
    return f", and nothing moved for {still} measurements" if still >= goal.patience else ""
