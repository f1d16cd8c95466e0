"""Figures: one style for all of them, and files of both kinds, a PNG for the screen and a PDF for print."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches, as figures are printed: nothing is scaled, so that fonts keep their size
COLUMN, PAGE = 3.3, 6.9
FONT = 8  # points
# Four colours of the palette of Okabe and Ito, https://jfly.uni-koeln.de/color/, and two dark ones in place of those that
# are as light as others. Neighbours in this order are far apart in lightness, for print without colours
COLOURS = ("#0072B2", "#E69F00", "#000000", "#009E73", "#7A3B00", "#0A2A5E")
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLE = {
    "font.size": FONT,
    "axes.labelsize": FONT,
    "axes.titlesize": FONT,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "legend.fontsize": FONT,
    "legend.frameon": False,
    "legend.handlelength": 3.0,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.8,
    "image.cmap": "viridis",  # uniform in perception, also without red or green
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
}


def house_style() -> AbstractContextManager[Any]:
    """Give a context in which matplotlib draws, and writes, in the style of all figures."""
    from matplotlib import rc_context  # imported late: it takes a second, and few commands plot

    return rc_context(_STYLE)  # pyright: ignore[reportArgumentType]


def new_figure(width: float, height: float) -> "Figure":
    """Make an empty figure of a width and a height in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.06))


def line_style(place: int) -> Mapping[str, Any]:
    """Choose colour, dashes and marker of a line by its place among all lines. The first 36 lines differ."""
    turned = place + place // len(COLOURS)  # lines of one colour differ in dashes and marker
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": LINES[turned % len(LINES)],
        "marker": MARKERS[turned % len(MARKERS)],
    }


def write_figure(figure: "Figure", path: Path, dpi: int) -> list[Path]:
    """
    Write a figure as PNG and as PDF.

    Args:
        figure (`matplotlib.figure.Figure`): Figure.
        path (`pathlib.Path`): The PNG. The PDF has the same name with `.pdf`.
        dpi (`int`): Dots per inch of the PNG.

    Returns:
        `list[pathlib.Path]`: Both files.
    """
    # Without the date, so that equal figures are equal files
    options = {path: ("png", None), path.with_suffix(".pdf"): ("pdf", {"CreationDate": None})}
    with house_style():
        for file, (kind, metadata) in options.items():
            with atomic_path(file) as temporary:
                figure.savefig(temporary, dpi=dpi, format=kind, metadata=metadata)
    return list(options)
