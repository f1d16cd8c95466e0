from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from wagle_trl.files.figure import COLOURS, LINES, MARKERS, PAGE, house_style, line_style, new_figure, write_figure

from ..support.pictures import printed_sizes

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency" (2009), table 1,
# severity 1.0; on linear RGB
PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour):
    """sRGB -> linear RGB (IEC 61966-2-1)."""
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """Linear RGB -> CIELAB, in which a distance of about 2.3 is just noticeable."""
    t = TO_XYZ @ np.clip(rgb, 0, 1) / TO_XYZ.sum(axis=1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen", [np.eye(3), PROTANOPIA, DEUTERANOPIA], ids=["all", "protanopia", "deuteranopia"])
def test_colours_differ_for_colour_blind_readers(seen):
    seen_as = [lab(np.array(seen) @ linear(colour)) for colour in COLOURS]
    assert min(np.linalg.norm(one - other) for one, other in combinations(seen_as, 2)) > 25


def test_colours_differ_in_grayscale_and_neighbours_more():
    lightness = [lab(linear(colour))[0] for colour in COLOURS]
    assert min(abs(one - other) for one, other in combinations(lightness, 2)) > 11
    assert min(abs(one - other) for one, other in pairwise(lightness)) > 14
    assert max(lightness) < 75  # seen on white


def test_lines_differ_in_more_than_the_colour():
    styles = [line_style(place) for place in range(36)]
    assert len({(style["color"], str(style["linestyle"]), style["marker"]) for style in styles}) == 36
    for part in ("linestyle", "marker", "color"):
        assert len({str(style[part]) for style in styles[:6]}) == len(COLOURS) == len(LINES) == len(MARKERS)


def test_a_figure_is_as_wide_as_it_is_printed_and_equal_figures_are_equal_files(tmp_path):
    for name in ("a.png", "b.png"):
        with house_style():
            figure = new_figure(PAGE, 2.0)
            figure.subplots().set(xlabel="step", title="title")
        files = write_figure(figure, tmp_path / name, dpi=100)
    assert [file.name for file in files] == ["b.png", "b.pdf"]
    assert (tmp_path / "a.pdf").read_bytes() == files[1].read_bytes()
    width, fonts = printed_sizes(files[1])
    assert width == pytest.approx(PAGE, abs=0.01) and fonts and min(fonts) >= 8
