"""Figures of runs and groups of runs. Each has the same colour, dashes and marker in all of them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files.figure import PAGE, house_style, line_style, new_figure, write_figure
from ..text import figure_text
from .groups import Group
from .interval import Interval
from .runs import LEVELS, Run, words
from .trajectory import matched

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float]]  # places and values
Styles = Mapping[str, Mapping[str, Any]]  # by label
_DPI = 200
_PANELS = 3  # side by side
_CHARACTERS_PER_INCH = 14  # of a legend


def plot_trajectories(lines: Sequence[Run | Group], path: Path) -> list[Path]:
    """
    Plot answer probabilities over the steps, in a panel for each set of rows.

    A group is the mean of its runs where all were measured, with a band, its 95 % t-interval.

    Args:
        lines (`list[Run | Group]`): Runs and groups; those without a trajectory are left out.
        path (`pathlib.Path`): The PNG to write; the PDF has the same name.

    Returns:
        `list[pathlib.Path]`: The files; none if no run has a trajectory.
    """
    shown = _with_trajectory(lines)
    if not shown:
        return []
    styles = _styles(lines, shown)
    sets = list(dict.fromkeys(name for line in shown for name in line.sets))
    columns = min(_PANELS, len(sets))
    rows = math.ceil(len(sets) / columns)
    with house_style():
        figure = new_figure(PAGE, 0.4 + 1.9 * rows)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, name in zip(panels.flat, sets):
            for line in (line for line in shown if all(name in run.trajectory for run in line.members)):
                _draw(axes, line, lambda run, name=name: (run.trajectory["step"], run.trajectory[name]), styles)
            axes.set_title(f"{figure_text(words(name), 24)} rows")
            axes.locator_params(axis="x", integer=True)
            axes.set(ylim=(-0.02, 1.02))
            axes.grid()
        for axes in panels.flat[len(sets) :]:
            axes.set_axis_off()
        for place, axes in enumerate(panels.flat[: len(sets)]):
            is_last = place + columns >= len(sets)  # of its column
            axes.tick_params("x", labelbottom=is_last)
            axes.set_xlabel("optimizer step" if is_last else "")
        for axes in panels[:, 0]:
            axes.set_ylabel("answer probability")
        return _save(figure, styles, path)


def _with_trajectory(lines: Iterable[Run | Group]) -> list[Run | Group]:
    return [line for line in lines if all(run.trajectory["step"] for run in line.members)]


def plot_trade_off(lines: Sequence[Run | Group], path: Path) -> list[Path]:
    """
    Plot what unlearning buys and what it costs: the retain probability over the forget probability, and beside it, closer,
    the retain probability where each run passed the forget probabilities `LEVELS`, and that of the saved weights.

    It shows the unseen retain rows if every run measured them, else the retain rows. A group is the mean of its runs
    where all of them came, with its 95 % t-interval.

    Args:
        lines (`list[Run | Group]`): Runs and groups; those without a trajectory of retain rows are left out.
        path (`pathlib.Path`): As in [`plot_trajectories`].

    Returns:
        `list[pathlib.Path]`: The files; none if no run measured retain rows.
    """
    measured = _with_trajectory(lines)
    runs = [run for line in measured for run in line.members]
    kept = "unseen_retain" if all("unseen_retain" in run.trajectory for run in runs) else "retain"
    shown = [line for line in measured if all(kept in run.trajectory for run in line.members)]
    if not shown:
        return []
    styles = _styles(lines, shown)
    before = float(np.mean([run.trajectory[kept][0] for line in shown for run in line.members]))
    with house_style():
        figure = new_figure(PAGE, 2.9)
        whole, closer = figure.subplots(1, 2, width_ratios=(1.0, 1.2))
        _draw_curves(whole, shown, kept, styles)
        _draw_kept(closer, shown, kept, styles)
        dotted = {"color": "0.4", "linewidth": 0.8, "linestyle": (0, (1, 2)), "zorder": 1}
        whole.axhline(before, **dotted)
        closer.axvline(before, **dotted)
        return _save(figure, styles | {"before unlearning": dotted}, path)


def _draw_curves(axes: "Axes", lines: Iterable[Run | Group], kept: str, styles: Styles) -> None:
    levels = np.unique([*np.linspace(0.005, 0.995, 199), *LEVELS])[::-1]
    for line in lines:
        # A run as it was measured. Runs of a group were measured at different places, so each is read at the same levels
        at = levels if isinstance(line, Group) else None
        _draw(axes, line, lambda run, at=at: _trade_off(run, kept, at), styles)
    for level in LEVELS:
        axes.axvline(level, color="0.6", linewidth=0.8, zorder=0)
        axes.text(level, 1.02, str(level), transform=axes.get_xaxis_transform(), ha="center", color="0.3")
    axes.set(xlim=(1.02, -0.02), ylim=(-0.02, 1.02))
    axes.set(xlabel="forget probability (→ more forgotten)", ylabel=f"{words(kept)} probability")


def _trade_off(run: Run, kept: str, levels: Iterable[float] | None) -> Curve:
    if levels is None:
        return run.trajectory["forget"], run.trajectory[kept]
    reached = [(level, at[kept]) for level in levels if (at := matched(run.trajectory, level)) is not None]
    return [level for level, _ in reached], [value for _, value in reached]


def _draw_kept(axes: "Axes", lines: Sequence[Run | Group], kept: str, styles: Styles) -> None:
    """Draw a point per line at each level, the lines of a level below each other."""
    rows = {f"{kept}_at_{level}": f"forget\nprobability\nis {level}" for level in LEVELS}
    rows |= {f"final_{kept}": "saved weights,\nwith forget\nprobability"}
    for place, name in enumerate(rows):
        for number, line in enumerate(lines):
            if (value := line.kept().get(name)) is None:
                continue
            mean, half = _mean(value)
            style = {**styles[line.label], "linestyle": "none", "markersize": 5}
            height = place + 0.7 * ((number + 0.5) / len(lines) - 0.5)
            axes.errorbar([mean], [height], xerr=[half], capsize=2, **style)
            if name.startswith("final"):  # the only weights of which this is not said on the left
                forget, _ = _mean(line.kept()["final_forget"])
                axes.annotate(f"{forget:.2f}", (mean + half, height), (5, 0), textcoords="offset points", va="center")
    for place in range(1, len(rows)):
        axes.axhline(place - 0.5, color="0.8", linewidth=0.6)
    axes.set_yticks(range(len(rows)), list(rows.values()))
    axes.tick_params("y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.15)
    axes.set_xlabel(f"{words(kept)} probability")
    axes.grid(axis="x")


def _mean(value: Interval | float) -> tuple[float, float]:
    """Mean, and half of the interval, of a number of a run or a group."""
    return (value.mean, value.half or 0.0) if isinstance(value, Interval) else (value, 0.0)


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
    styles = _styles(lines, shown)
    with house_style():
        figure = new_figure(0.7 * PAGE, 2.6)
        axes = figure.subplots()
        for line in shown:
            _draw(axes, line, _relearning, styles)
        axes.locator_params(axis="x", integer=True)
        axes.set(xlabel="relearning step", ylabel="probability of the forget\nrows not trained on", ylim=(-0.02, 1.02))
        axes.grid()
        return _save(figure, styles, path)


def _relearning(run: Run) -> Curve:
    points = run.attacks.get("relearn", {}).get("curve", [])
    return [point["step"] for point in points], [point["forget_probability"] for point in points]


def _draw(axes: "Axes", line: Run | Group, curve: Callable[[Run], Curve], styles: Styles) -> None:
    """Draw the curve of a run, or the mean of a group with its band."""
    style = styles[line.label]
    if isinstance(line, Group):
        places, values = line.average(curve)
        means = [value.mean for value in values]
        low = [value.mean - (value.half or 0.0) for value in values]
        high = [value.mean + (value.half or 0.0) for value in values]
        axes.fill_between(places, low, high, color=style["color"], alpha=0.15, linewidth=0)
    else:
        places, means = curve(line)
    axes.plot(places, means, markevery=max(1, len(places) // 6), **style)


def _styles(lines: Sequence[Run | Group], shown: Iterable[Run | Group]) -> dict[str, Mapping[str, Any]]:
    """Choose the style of the lines that are shown, by label. It depends on their place among all lines."""
    styles = {line.label: line_style(place) for place, line in enumerate(lines)}
    return {line.label: styles[line.label] for line in shown}


def _save(figure: "Figure", styles: Styles, path: Path) -> list[Path]:
    """Write the figure, enlarged by a legend of the runs below it."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    handles = [Line2D([], [], label=figure_text(label), **style) for label, style in styles.items()]
    longest = max(len(str(handle.get_label())) for handle in handles) + 8  # for the line before it
    beside = max(1, min(len(styles), int(_CHARACTERS_PER_INCH * width) // longest))
    figure.set_size_inches(width, height + 0.18 * math.ceil(len(styles) / beside))
    figure.legend(handles=handles, loc="outside lower center", ncols=beside)
    return write_figure(figure, path, _DPI)
