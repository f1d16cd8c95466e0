"""Whether a figure can be read as it is printed."""

import re
import zlib

import pytest
from matplotlib.text import Text

from wagle_trl.files.figure import FONT, PAGE, house_style


def check_legible(figure):
    """No text is small or cut off, no legend covers a panel, and no two lines with markers of a panel look alike."""
    page = figure.bbox
    assert page.width / figure.dpi <= PAGE
    for text in drawn_texts(figure):
        box = text.get_window_extent()
        assert text.get_fontsize() >= FONT, text
        assert box.x0 > -1 and box.x1 < page.width + 1 and box.y0 > -1 and box.y1 < page.height + 1, text
    for legend in figure.legends:
        panels = [axes.get_tightbbox() for axes in figure.axes if axes.get_visible() and axes.axison]
        assert not any(legend.get_window_extent().overlaps(panel) for panel in panels)
    for axes in figure.axes:
        looks = [
            (line.get_color(), str(line.get_linestyle()), line.get_marker())
            for line in axes.lines
            if line.get_marker() in "os^DvP" and len(line.get_xdata()) > 1
        ]
        assert len(set(looks)) == len(looks)


def drawn_texts(figure):
    """The texts of a figure, without those of ticks beyond the ends of an axis."""
    drawn, draw = [], Text.draw

    def record(text, renderer):
        if text.get_visible() and text.get_text().strip():
            drawn.append(text)
        draw(text, renderer)

    with house_style(), pytest.MonkeyPatch.context() as patch:
        figure.draw_without_rendering()  # settles the layout
        patch.setattr(Text, "draw", record)
        figure.draw_without_rendering()
    assert drawn
    return drawn


def printed_sizes(pdf):
    """Width of the page in inches, and sizes of all fonts in points, of a PDF of matplotlib."""
    content = pdf.read_bytes()
    (box,) = re.findall(rb"/MediaBox \[\s*0 0 ([\d.]+)", content)
    fonts = []
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL):
        try:
            fonts += [float(size) for size in re.findall(rb"/F\S+ ([\d.]+) Tf", zlib.decompress(stream))]
        except zlib.error:
            continue  # not text
    return float(box) / 72, fonts
