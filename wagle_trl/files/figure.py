"""Figures as files: a PNG for the screen, and beside it a PDF for print."""

from pathlib import Path
from typing import TYPE_CHECKING

from .atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    from matplotlib import rc_context  # imported late: it takes a second, and few commands plot

    # TrueType fonts, which publishers ask for; without the date, so that equal figures are equal files
    options = {path: ("png", None), path.with_suffix(".pdf"): ("pdf", {"CreationDate": None})}
    with rc_context({"pdf.fonttype": 42}):
        for file, (kind, metadata) in options.items():
            with atomic_path(file) as temporary:
                figure.savefig(temporary, dpi=dpi, format=kind, metadata=metadata)
    return list(options)
