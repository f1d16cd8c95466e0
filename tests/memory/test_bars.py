from typing import Any

import pytest

from wagle_trl.files.figure import write_figure
from wagle_trl.memory.bars import COMPONENTS, Peak, draw_peaks

from ..support.pictures import check_legible, printed_sizes

GB = 10**9
TRAINING = {"weights": 13 * GB, "CUDA context": GB // 2, "positions": GB, "moments": GB, "remainders": GB}
TRAINING |= {"gradients": GB, "mask": GB, "reference": GB, "activations": 2 * GB, "backward pass": GB}
ATTRIBUTION = {"weights": 13 * GB, "CUDA context": GB // 2, "statistics": 6 * GB, "masks": GB, "candidates": GB}


def test_components_are_stacked_in_order_and_the_card_is_a_line():
    figure = draw_peaks([Peak("attribution", ATTRIBUTION), Peak("training", TRAINING)], capacity=24 * GB)
    (axes,) = figure.axes
    bars: Any = axes.patches
    assert [bar.get_width() for bar in bars] == pytest.approx(
        [size / GB for size in (*ATTRIBUTION.values(), *TRAINING.values())]
    )
    assert bars[2].get_x() == pytest.approx(13.5)  # on top of weights and context
    assert [text.get_text() for text in axes.texts] == ["21.5 GB", "22.5 GB"]
    assert axes.lines[0].get_xdata() == [24.0, 24.0]
    assert axes.get_xlabel() == "peak memory, GB"
    check_legible(figure)


def test_a_component_looks_the_same_everywhere_and_like_no_other(tmp_path):
    assert len(set(COMPONENTS.values())) == len(COMPONENTS)
    for components in (TRAINING, ATTRIBUTION):
        assert components.keys() <= COMPONENTS.keys()
        figure = draw_peaks([Peak("run", components)])
        drawn = [bar.get_hatch() for bar in figure.axes[0].patches]
        assert drawn == [COMPONENTS[name][1] for name in components]
    _, fonts = printed_sizes(write_figure(figure, tmp_path / "m.png", dpi=50)[1])
    assert min(fonts) >= 8


def test_what_was_measured_is_a_bar_of_its_own_that_says_of_what(tmp_path):
    peaks = [Peak("a: training", {"weights": 2e6}, 5e6, "the whole process"), Peak("b: training", {"new part": 1e6})]
    figure = draw_peaks(peaks)
    bars: Any = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == [2.0, 5.0, 1.0]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["weights", "new part", "measured: the whole process"]
    assert figure.axes[0].get_xlabel() == "peak memory, MB"
    check_legible(figure)


@pytest.mark.parametrize("name", [r"$\frac$", "\x1b[2J", "_", "x" * 900], ids=["formula", "escape", "hidden", "long"])
def test_a_hostile_name_is_a_label_like_any_other(name, tmp_path):
    figure = draw_peaks([Peak(name, {name: 5}, 7, "the whole process")])
    assert write_figure(figure, tmp_path / "m.png", dpi=50)[0].stat().st_size > 1000
    check_legible(figure)
