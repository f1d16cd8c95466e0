"""Figures of the study."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.environment import ROOT
from benchmarks.study.report import TITLES, Case, first_seed, kept_at, order
from wagle_trl.comparison.trajectory import matched
from wagle_trl.files.atomic import atomic_path
from wagle_trl.files.figure import COLOURS

FIGURES = ROOT / "benchmarks" / "results" / "study"


def draw(chosen: dict[Case, list[dict]]) -> None:
    """All figures, from the rows of every case at its picked learning rate."""
    trade_off(chosen, FIGURES / "trade_off.png")
    relearning(chosen, FIGURES / "relearning.png")
    scores(chosen, FIGURES / "scores.png")


def _by_objective(chosen: dict[Case, list[dict]], plot: Callable[[Axes, list[dict], dict], None]) -> Figure:
    """A panel for each objective, in which `plot` draws every case that has several seeds."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    several = {case: rows for case, rows in chosen.items() if len(rows) > 1}
    labels = sorted({case.label for case in several})
    for axis, objective in zip(figure.subplots(1, 2, sharey=True), TITLES):
        for case, rows in several.items():
            if case.objective == objective:
                plot(axis, rows, {"color": COLOURS[labels.index(case.label)], "label": case.label})
        axis.set_title(TITLES[objective])
        axis.grid(alpha=0.25)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def trade_off(chosen: dict[Case, list[dict]], path: Path) -> None:
    """Unseen retain over forget probability, a line a case, its seeds thin."""
    figure = _by_objective(chosen, _curves)
    for axis in figure.axes:
        axis.set(xlabel="forget probability", xlim=(1, 0))
        axis.axvline(0.1, color="0.7", linewidth=0.8, zorder=0)
    figure.axes[0].set_ylabel("unseen retain probability")
    _save(figure, path)


def _curves(axis: Axes, rows: list[dict], style: dict) -> None:
    grid = np.linspace(0.95, 0.1, 50)
    curves = []
    for row in rows:
        curve = [np.nan if (at := matched(row["trajectory"], x)) is None else at["unseen_retain"] for x in grid]
        axis.plot(grid, curve, color=style["color"], linewidth=0.6, alpha=0.5)
        curves.append(curve)
    axis.plot(grid, np.nanmean(curves, axis=0), linewidth=2, **style)


def relearning(chosen: dict[Case, list[dict]], path: Path) -> None:
    """Forget probability over relearning steps, mean of the seeds."""
    figure = _by_objective(chosen, _relearned)
    for axis in figure.axes:
        axis.set(xlabel="relearning steps", ylim=(0, 1), xticks=range(0, 21, 4))
    figure.axes[0].set_ylabel("forget probability of rows not relearned")
    _save(figure, path)


def _relearned(axis: Axes, rows: list[dict], style: dict) -> None:
    attacked = [row["relearn"] for row in rows if "relearn" in row]
    axis.plot(attacked[0]["step"], np.mean([a["forget"] for a in attacked], axis=0), marker="o", **style)


def scores(chosen: dict[Case, list[dict]], path: Path) -> None:
    """Unseen retain probability at forgetting 0.1 of every case, seed 0."""
    cases = [
        (case, rows[0])
        for case, rows in sorted(first_seed(chosen).items(), key=order)
        if rows and case.objective == "npo"
    ]
    figure = Figure(figsize=(7.5, 1 + 0.24 * len(cases)), layout="constrained")
    axis = figure.subplots()
    for place, (case, row) in enumerate(cases):
        control = case.score in ("random", "dense")
        axis.plot(kept_at([row], 0.1), [place], "o", color=COLOURS[1] if control else COLOURS[0])
    axis.set_yticks(range(len(cases)), [case.label for case, _ in cases], fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="unseen retain probability where the forget probability first reaches 0.1", title="NPO, seed 0")
    axis.grid(alpha=0.25)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
