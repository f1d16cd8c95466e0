"""Figure of peaks of memory: a bar of the predicted components, and below it what was measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..files.figure import COLOURS, PAGE, house_style, new_figure
from ..text import figure_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _BLACK, _GREEN, _BROWN, _NAVY = COLOURS
# Colour and hatch of every component, the same in all figures. Those side by side differ without colours, too
COMPONENTS = {
    "weights": (_BLUE, ""),
    "CUDA context": (_BLACK, ""),
    "positions": (_ORANGE, "////"),
    "moments": (_ORANGE, ""),
    "remainders": (_BROWN, ""),
    "gradients": (_BROWN, "////"),
    "mask": (_BLUE, "////"),
    "reference": (_BLACK, "////"),
    "activations": (_GREEN, ""),
    "backward pass": (_GREEN, "////"),
    "statistics": (_NAVY, ""),
    "masks": (_BLUE, "...."),
    "candidates": (_ORANGE, "...."),
}
_OTHER = ("0.5", "....")  # a component of another version
_MEASURED = {"facecolor": "0.85", "edgecolor": "0.2", "linewidth": 0.8}


@dataclass(frozen=True)
class Peak:
    """
    Peak of memory of a phase of a run.

    Args:
        label (`str`): Phase, and run.
        predicted (`dict[str, int]`): Bytes by component.
        measured (`float`, *optional*): Bytes that were measured.
        measured_is (`str`, *optional*): What was measured.
    """

    label: str
    predicted: Mapping[str, float]
    measured: float | None = None
    measured_is: str = ""


def draw_peaks(peaks: Sequence[Peak], capacity: int | None = None) -> "Figure":
    """
    Draw peaks as stacked bars.

    Args:
        peaks (`list[Peak]`): At least one peak; the first is on top.
        capacity (`int`, *optional*): Bytes on the device, which a line marks.
    """
    totals = [size for peak in peaks for size in (sum(peak.predicted.values()), peak.measured or 0)]
    largest = max(*totals, capacity or 0)
    unit, name = next((u for u in ((1e9, "GB"), (1e6, "MB")) if largest >= u[0]), (1e3, "kB"))
    bars = sum(1 if peak.measured is None else 2 for peak in peaks)
    with house_style():
        components = list(dict.fromkeys(part for peak in peaks for part in peak.predicted))
        figure = new_figure(PAGE, 0.55 + 0.28 * bars + 0.1 * len(peaks) + 0.17 * (1 + len(components) // 4))
        axes = figure.subplots()
        places = _draw_bars(axes, peaks, unit, name)
        axes.set_yticks(places, [figure_text(peak.label, 30) for peak in peaks])
        axes.tick_params("y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.13 * largest / unit)  # with room for the totals
        axes.set_xlabel(f"peak memory, {name}")
        axes.grid(axis="x")
        handles = _legend(components, peaks)
        if capacity is not None:
            label = f"the device has {capacity / unit:.1f} {name}"
            handles += [axes.axvline(capacity / unit, color="black", linestyle="--", label=label)]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, handlelength=1.8)
    return figure


def _draw_bars(axes: "Axes", peaks: Iterable[Peak], unit: float, name: str) -> list[float]:
    """Draw the bars from top to bottom, and return the place of each peak."""
    places, top = [], 0.0
    for peak in peaks:
        left = 0.0
        for part, size in peak.predicted.items():
            axes.barh(top, size / unit, left=left / unit, height=0.8, **_style(part))
            left += size
        _write_total(axes, left / unit, top, name)
        places.append(top)
        if peak.measured is not None:
            axes.barh(top + 0.9, peak.measured / unit, height=0.8, **_MEASURED)
            _write_total(axes, peak.measured / unit, top + 0.9, name)
            places[-1] += 0.45
            top += 0.9
        top += 1.25
    return places


def _write_total(axes: "Axes", total: float, place: float, name: str) -> None:
    digits = 1 if total >= 10 else 2
    axes.annotate(f"{total:.{digits}f} {name}", (total, place), (3, 0), textcoords="offset points", va="center")


def _style(part: str) -> dict[str, Any]:
    colour, hatch = COMPONENTS.get(part, _OTHER)
    return {"facecolor": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}


def _legend(components: Iterable[str], peaks: Iterable[Peak]) -> list[Any]:
    from matplotlib.patches import Patch

    measured = dict.fromkeys(peak.measured_is for peak in peaks if peak.measured is not None)
    return [Patch(label=figure_text(part, 30), **_style(part)) for part in components] + [
        Patch(label=f"measured: {what}", **_MEASURED) for what in measured
    ]
