"""Figures of runs. A run has the same colour in all of them."""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.atomic import atomic_path
from ..text import figure_text
from .runs import LEVELS, Run, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# The palette of Okabe and Ito, which colour-blind readers can tell apart, without yellow, which is faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D")  # each time the colours repeat, the next marker
LINES = {"forget": "-", "retain": "--", "unseen_retain": ":"}
OTHER_LINE = "-."
_LEGEND = dict(fontsize=8, frameon=False)
_CHARACTERS_PER_INCH = 11  # of a legend


def plot_trajectories(runs: Sequence[Run], path: str | os.PathLike) -> Path | None:
    """
    Plot answer probabilities over the steps, and beside it the retain probability over the forget probability.

    The second panel shows the unseen retain rows if every run measured them, else the retain rows.

    Args:
        runs (`list[Run]`): Runs; those without a trajectory are left out.
        path (`str` or `os.PathLike`): File to write, a PNG.

    Returns:
        `pathlib.Path`: The file; `None`, and no file, if no run has a trajectory.
    """
    trajectories = {run.label: run.trajectory for run in runs if run.trajectory["step"]}
    if not trajectories:
        return None
    figure = _figure(9.0)
    over_steps, trade_off = figure.subplots(1, 2)
    styles = _styles(runs, trajectories)
    _draw_steps(over_steps, trajectories, styles)
    _draw_trade_off(trade_off, trajectories, styles)
    return _save(figure, styles, path)


def _draw_steps(
    axes: "Axes", trajectories: dict[str, dict[str, list[float]]], styles: dict[str, dict[str, Any]]
) -> None:
    sets = list(dict.fromkeys(name for columns in trajectories.values() for name in columns if name != "step"))
    for label, columns in trajectories.items():
        every = max(1, len(columns["step"]) // 5)  # a marker at each measurement would hide the line style
        for name in (name for name in sets if name in columns):
            style = styles[label] | {"linestyle": LINES.get(name, OTHER_LINE), "markevery": every}
            axes.plot(columns["step"], columns[name], **style)
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="optimizer step", ylabel="answer probability", ylim=(-0.02, 1.02))
    # The sets have their own legend, above the panel that shows them
    lines = [_line(words(name), {"color": "0.35", "linestyle": LINES.get(name, OTHER_LINE)}) for name in sets]
    axes.legend(handles=lines, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(lines), **_LEGEND)


def _draw_trade_off(
    axes: "Axes", trajectories: dict[str, dict[str, list[float]]], styles: dict[str, dict[str, Any]]
) -> None:
    kept = "unseen_retain" if all("unseen_retain" in columns for columns in trajectories.values()) else "retain"
    for label, columns in trajectories.items():
        if kept in columns:
            axes.plot(columns["forget"], columns[kept], **styles[label])
    for level in LEVELS:
        axes.axvline(level, color="0.7", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.text(level, 1.02, str(level), transform=axes.get_xaxis_transform(), ha="center", fontsize=8, color="0.4")
    axes.set_xlim(1.02, -0.02)
    axes.set(xlabel="forget probability (forgetting goes to the right)", ylabel=f"{words(kept)} probability")


def plot_relearning(runs: Sequence[Run], path: str | os.PathLike) -> Path | None:
    """
    Plot the probability of the forget rows that the relearning attack did not train on, over its steps.

    Args:
        runs (`list[Run]`): Runs; those without this attack are left out.
        path (`str` or `os.PathLike`): File to write, a PNG.

    Returns:
        `pathlib.Path`: The file; `None`, and no file, if no run has this attack.
    """
    curves = {run.label: run.attacks.get("relearn", {}).get("curve") for run in runs}
    curves = {label: curve for label, curve in curves.items() if curve}
    if not curves:
        return None
    figure = _figure(5.5)
    axes = figure.subplots()
    styles = _styles(runs, curves)
    for label, curve in curves.items():
        axes.plot([p["step"] for p in curve], [p["forget_probability"] for p in curve], **styles[label])
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="relearning step", ylabel="probability of the forget\nrows not trained on", ylim=(-0.02, 1.02))
    return _save(figure, styles, path)


def _figure(width: float) -> "Figure":
    from matplotlib.figure import Figure  # imported late: it takes a second, and few commands plot
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, 3.6), layout=ConstrainedLayoutEngine(w_pad=0.1))


def _styles(runs: Sequence[Run], shown: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Choose the style of the runs that are shown, by label. It depends on their place among all runs."""
    styles = {
        run.label: {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place // len(COLOURS) % len(MARKERS)],
            "markersize": 3,
            "linewidth": 1.4,
        }
        for place, run in enumerate(runs)
    }
    return {label: styles[label] for label in styles if label in shown}


def _line(label: str, style: dict[str, Any]) -> "Line2D":
    from matplotlib.lines import Line2D

    return Line2D([], [], label=figure_text(label), **style)


def _save(figure: "Figure", styles: dict[str, dict[str, Any]], path: str | os.PathLike) -> Path:
    """Write the figure, enlarged by a legend of the runs below it."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.93", linewidth=0.6)
        axes.set_axisbelow(True)
    width, height = figure.get_size_inches()
    longest = max(len(figure_text(label)) for label in styles) + 6  # for the line before it
    beside = max(1, min(len(styles), int(_CHARACTERS_PER_INCH * width) // longest))
    figure.set_size_inches(width, height + 0.18 * math.ceil(len(styles) / beside))
    handles = [_line(label, style) for label, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=beside, **_LEGEND)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=200, format="png")
    return Path(path)
