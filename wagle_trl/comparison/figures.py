"""Figures of runs and groups of runs. Each has the same colour in all of them."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files.figure import write_figure
from ..text import figure_text
from .groups import Group
from .runs import LEVELS, Run, words
from .trajectory import matched

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# The palette of Okabe and Ito, which colour-blind readers can tell apart, without yellow, which is faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D")  # each time the colours repeat, the next marker
LINES = {"forget": "-", "retain": "--", "unseen_retain": ":"}
OTHER_LINE = "-."
Curve = tuple[Sequence[float], Sequence[float]]  # places and values
_LEGEND = dict(fontsize=8, frameon=False)
_CHARACTERS_PER_INCH = 11  # of a legend


def plot_trajectories(lines: Sequence[Run | Group], path: Path) -> list[Path]:
    """
    Plot answer probabilities over the steps, and beside it the retain probability over the forget probability.

    A group is the mean of its runs where all were measured, with a band, its 95 % t-interval. The second panel shows the
    unseen retain rows if every run measured them, else the retain rows.

    Args:
        lines (`list[Run | Group]`): Runs and groups; those without a trajectory are left out.
        path (`pathlib.Path`): The PNG to write; the PDF has the same name.

    Returns:
        `list[pathlib.Path]`: The files; none if no run has a trajectory.
    """
    shown = [line for line in lines if all(run.trajectory["step"] for run in line.members)]
    if not shown:
        return []
    figure = _figure(9.0)
    over_steps, trade_off = figure.subplots(1, 2)
    styles = _styles(lines, shown)
    _draw_steps(over_steps, shown, styles)
    _draw_trade_off(trade_off, shown, styles)
    return _save(figure, styles, path)


def _draw_steps(axes: "Axes", lines: Sequence[Run | Group], styles: dict[str, dict[str, Any]]) -> None:
    sets = list(dict.fromkeys(name for line in lines for name in line.sets))
    for line in lines:
        for name in (name for name in sets if all(name in run.trajectory for run in line.members)):
            style = styles[line.label] | {"linestyle": LINES.get(name, OTHER_LINE)}
            _draw(axes, line, lambda run, name=name: (run.trajectory["step"], run.trajectory[name]), style, True)
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="optimizer step", ylabel="answer probability", ylim=(-0.02, 1.02))
    # The sets have their own legend, above the panel that shows them
    legend = [_line(words(name), {"color": "0.35", "linestyle": LINES.get(name, OTHER_LINE)}) for name in sets]
    axes.legend(handles=legend, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(legend), **_LEGEND)


def _draw_trade_off(axes: "Axes", lines: Sequence[Run | Group], styles: dict[str, dict[str, Any]]) -> None:
    runs = [run for line in lines for run in line.members]
    kept = "unseen_retain" if all("unseen_retain" in run.trajectory for run in runs) else "retain"
    for line in (line for line in lines if all(kept in run.trajectory for run in line.members)):
        # A run as it was measured. Runs of a group were measured at different places, so each is read at the same levels
        levels, style = None, styles[line.label]
        if isinstance(line, Group):
            levels = np.unique([*np.linspace(0.005, 0.995, 199), *LEVELS])[::-1]
            style = style | {"marker": ""}
        _draw(axes, line, lambda run, levels=levels: _trade_off(run, kept, levels), style)
    for level in LEVELS:
        axes.axvline(level, color="0.7", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.text(level, 1.02, str(level), transform=axes.get_xaxis_transform(), ha="center", fontsize=8, color="0.4")
    axes.set_xlim(1.02, -0.02)
    axes.set(xlabel="forget probability (forgetting goes to the right)", ylabel=f"{words(kept)} probability")


def _trade_off(run: Run, kept: str, levels: Iterable[float] | None) -> tuple[Sequence[float], Sequence[float]]:
    if levels is None:
        return run.trajectory["forget"], run.trajectory[kept]
    reached = [(level, at[kept]) for level in levels if (at := matched(run.trajectory, level)) is not None]
    return [level for level, _ in reached], [value for _, value in reached]


def plot_relearning(lines: Sequence[Run | Group], path: Path) -> list[Path]:
    """
    Plot the probability of the forget rows that the relearning attack did not train on, over its steps.

    Args:
        lines (`list[Run | Group]`): Runs and groups; those without this attack, or with another one per run, are left out.
        path (`pathlib.Path`): As in [`plot_trajectories`].

    Returns:
        `list[pathlib.Path]`: The files; none if no run has this attack.
    """
    attacked = [line for line in lines if all(_relearning(run)[0] for run in line.members)]
    shown = [line for line in attacked if not (isinstance(line, Group) and line.evaluated_otherwise)]
    if not shown:
        return []
    figure = _figure(5.5)
    axes = figure.subplots()
    styles = _styles(lines, shown)
    for line in shown:
        _draw(axes, line, _relearning, styles[line.label])
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="relearning step", ylabel="probability of the forget\nrows not trained on", ylim=(-0.02, 1.02))
    return _save(figure, styles, path)


def _relearning(run: Run) -> Curve:
    points = run.attacks.get("relearn", {}).get("curve", [])
    return [point["step"] for point in points], [point["forget_probability"] for point in points]


def _draw(axes: "Axes", line: Run | Group, curve: Callable[[Run], Curve], style: dict[str, Any], spaced=False) -> None:
    """Draw the curve of a run, or the mean of a group with its band; with `spaced` markers, which would hide the style."""
    if isinstance(line, Group):
        places, values = line.average(curve)
        means = [value.mean for value in values]
        low = [value.mean - (value.half or 0.0) for value in values]
        high = [value.mean + (value.half or 0.0) for value in values]
        axes.fill_between(places, low, high, color=style["color"], alpha=0.15, linewidth=0)
    else:
        places, means = curve(line)
    options: dict[str, Any] = style | {"markevery": max(1, len(places) // 5) if spaced else None}
    axes.plot(places, means, **options)


def _figure(width: float) -> "Figure":
    from matplotlib.figure import Figure  # imported late: it takes a second, and few commands plot
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, 3.6), layout=ConstrainedLayoutEngine(w_pad=0.1))


def _styles(lines: Sequence[Run | Group], shown: Iterable[Run | Group]) -> dict[str, dict[str, Any]]:
    """Choose the style of the lines that are shown, by label. It depends on their place among all lines."""
    styles = {
        line.label: {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place // len(COLOURS) % len(MARKERS)],
            "markersize": 3,
            "linewidth": 1.4,
        }
        for place, line in enumerate(lines)
    }
    return {line.label: styles[line.label] for line in shown}


def _line(label: str, style: dict[str, Any]) -> "Line2D":
    from matplotlib.lines import Line2D

    return Line2D([], [], label=figure_text(label), **style)


def _save(figure: "Figure", styles: dict[str, dict[str, Any]], path: Path) -> list[Path]:
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
    return write_figure(figure, path, dpi=200)
