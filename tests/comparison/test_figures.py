import math
import os
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from wagle_trl.comparison import figures
from wagle_trl.comparison import peaks as drawn
from wagle_trl.comparison.figures import plot_relearning, plot_trade_off, plot_trajectories
from wagle_trl.comparison.groups import group_runs
from wagle_trl.comparison.peaks import plot_memory
from wagle_trl.comparison.runs import load_runs
from wagle_trl.files.figure import COLOURS, PAGE, new_figure

from ..support.pictures import check_legible, printed_sizes
from .conftest import EVALUATION, TRAINING


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def count(picture, colour):
    """Pixels of a colour of a run."""
    return (np.abs(picture - 255 * np.array(to_rgb(colour))).max(axis=-1) < 8).sum()


@pytest.fixture
def axes(monkeypatch):
    """The axes of the figures that are made."""
    made, make = [], figures.new_figure

    def record(width, height):
        made.append(make(width, height))
        return made[-1]

    monkeypatch.setattr(figures, "new_figure", record)
    return lambda: made[-1].axes


def test_trajectories_are_a_png_with_a_colour_for_each_run(runs, axes, tmp_path):
    picture = pixels(plot_trajectories(runs, tmp_path / "t.png")[0])
    assert picture.shape[1] == 200 * PAGE and 400 < picture.shape[0] < 600
    assert count(picture, COLOURS[0]) > 2000
    assert count(picture, COLOURS[1]) > 50  # one measurement, and the legend
    assert len(axes()[0].lines) == 2  # the third is only evaluated
    assert sorted(os.listdir(tmp_path))[-2:] == ["t.pdf", "t.png"]
    assert (tmp_path / "t.pdf").read_bytes().startswith(b"%PDF")


def test_the_trade_off_is_of_rows_that_took_no_part_if_all_runs_watched_them(make_run, axes, tmp_path):
    seen_only = [{k: v for k, v in entry.items() if "unseen" not in k} for entry in TRAINING["log_history"]]
    both, one = make_run("both"), make_run("one", training=TRAINING | {"log_history": seen_only})
    plot_trade_off(load_runs([both]), tmp_path / "t.png")
    assert axes()[0].get_ylabel() == axes()[1].get_xlabel() == "unseen retain probability"
    assert axes()[0].lines[0].get_xydata().tolist() == [[0.9, 0.95], [0.1, 0.55]]
    assert axes()[0].get_xlim()[0] > axes()[0].get_xlim()[1]
    plot_trade_off(load_runs([both, one]), tmp_path / "t.png")
    assert axes()[0].get_ylabel() == "retain probability"
    assert axes()[0].lines[0].get_xydata().tolist() == [[0.9, 1.0], [0.1, 0.8]]


def test_the_trade_off_shows_what_was_kept_at_each_level_and_before(make_run, axes, tmp_path):
    plot_trade_off(load_runs([make_run("a"), make_run("b")]), tmp_path / "t.png")
    whole, closer = axes()
    points = [bar.lines[0] for bar in closer.containers]
    kept = [0.65, 0.65, 0.55, 0.55, 0.55, 0.55]  # at 0.3, at 0.1, of the saved weights; as in the table
    assert [point.get_xdata()[0] for point in points] == pytest.approx(kept)
    assert [point.get_color() for point in points[:2]] == list(COLOURS[:2])
    assert [round(point.get_ydata()[0]) for point in points] == [0, 0, 1, 1, 2, 2]
    assert [text.get_text() for text in closer.texts] == ["0.10", "0.10"]
    assert whole.lines[-1].get_ydata() == closer.lines[-1].get_xdata() == [0.95, 0.95]


def test_each_set_has_a_panel_and_runs_differ_by_colour_dashes_and_marker(make_run, axes, tmp_path):
    plot_trajectories(load_runs([make_run("a"), make_run("b")]), tmp_path / "t.png")
    assert [panel.get_title() for panel in axes()] == ["forget rows", "retain rows", "unseen retain rows"]
    for panel in axes():
        first, second = panel.lines
        for look in ("get_color", "get_linestyle", "get_marker"):
            assert getattr(first, look)() != getattr(second, look)()


def test_a_run_keeps_its_colour_where_others_are_left_out(make_run, axes, tmp_path):
    runs = load_runs([make_run("a"), make_run("b", evaluation=EVALUATION)])
    plot_relearning(runs, tmp_path / "r.png")
    (line,) = axes()[0].lines
    assert line.get_color() == COLOURS[1]
    assert line.get_xydata().tolist() == [[0, 0.12], [20, 0.51]]
    assert count(pixels(tmp_path / "r.png"), COLOURS[1]) > 1000


def test_runs_beyond_the_colours_differ_by_dashes_and_marker(make_run, axes, tmp_path):
    plot_trajectories(load_runs([make_run(f"a run of a long name {i}") for i in range(8)]), tmp_path / "t.png")
    for panel in axes():
        first, *_, seventh, _ = panel.lines
        assert first.get_color() == seventh.get_color()
        assert first.get_marker() != seventh.get_marker()
    assert pixels(tmp_path / "t.png").shape[0] > 500  # the legend takes more lines, the panels stay


@pytest.mark.parametrize("plot", [plot_trajectories, plot_trade_off, plot_relearning])
@pytest.mark.parametrize("many", [1, 9])
def test_a_figure_can_be_read_as_it_is_printed(plot, many, make_run, axes, tmp_path):
    names = [f"a run with quite a long name {i}" if i % 2 else f"run {i}" for i in range(many)]
    _, pdf = plot(load_runs([make_run(name, evaluation=EVALUATION) for name in names]), tmp_path / "p.png")
    check_legible(axes()[0].figure)
    width, fonts = printed_sizes(pdf)
    assert width < PAGE + 0.01 and min(fonts) >= 8


@pytest.mark.parametrize("plot", [plot_trajectories, plot_trade_off, plot_relearning, plot_memory])
def test_there_is_no_picture_without_numbers(plot, make_run, tmp_path):
    assert plot(load_runs([make_run(training={"objective": "mask"})]), tmp_path / "p.png") == []
    assert not (tmp_path / "p.png").exists()


def test_an_interrupted_plot_leaves_the_old_one(runs, tmp_path, monkeypatch):
    path, _ = plot_relearning(runs, tmp_path / "r.png")
    before = path.read_bytes()

    def fail(*paths):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        plot_relearning(runs[::-1], path)
    assert path.read_bytes() == before


HALF = 4.302652729911275 * 0.1 / math.sqrt(3)  # Student's t with 2 degrees of freedom


def test_a_group_is_one_mean_line_with_a_band(seeds, axes, tmp_path):
    plot_trajectories(group_runs(load_runs(seeds())), tmp_path / "t.png")
    forget, _, unseen = axes()
    assert forget.lines[0].get_xydata() == pytest.approx(np.array([[0, 0.9], [10, 0.1]]))
    assert unseen.lines[0].get_xydata()[1].tolist() == [10, pytest.approx(0.55)]
    assert len(unseen.collections) == 1
    band = unseen.collections[0].get_paths()[0].vertices
    assert band[band[:, 0] == 10][:, 1] == pytest.approx([0.55 - HALF, 0.55 + HALF, 0.55 + HALF], abs=1e-6)


def test_the_trade_off_of_a_group_has_its_interval(seeds, axes, tmp_path):
    plot_trade_off(group_runs(load_runs(seeds())), tmp_path / "t.png")
    whole, closer = axes()
    at = dict(whole.lines[0].get_xydata().tolist())
    assert at[0.3] == pytest.approx(0.65) and at[0.1] == pytest.approx(0.55)  # as in the table
    (bar,) = closer.containers[1].lines[2]
    assert bar.get_segments()[0][:, 0] == pytest.approx([0.55 - HALF, 0.55 + HALF], abs=1e-6)


HOSTILE = [r"$\frac$", r"$x$ $\frac{$", "\x1b[2J\u202e", "_hidden", "x" * 5000, "中文"]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_is_a_label_like_any_other(name, make_run, axes, tmp_path):
    history = [{"step": i, "forget_probability": 1 - i, f"{name}_probability": 0.5} for i in range(2)]
    (run,) = load_runs([make_run(training={"log_history": history}, evaluation=EVALUATION)])
    run = replace(run, label=name)
    plot_trade_off([replace(run, label="run")], tmp_path / "o.png")
    plot_trajectories([run], tmp_path / "t.png")
    check_legible(axes()[0].figure)
    (legend,) = axes()[0].figure.legends
    (label,) = (text.get_text() for text in legend.get_texts())
    assert label.isprintable() and 0 < len(label) < 80
    plot_relearning([run], tmp_path / "r.png")


def test_a_run_that_watched_the_forget_rows_alone_has_no_trade_off(make_run, axes, tmp_path):
    history = [{"step": i, "forget_probability": 1 - i} for i in range(2)]
    runs = load_runs([make_run(training={"log_history": history})])
    assert plot_trade_off(runs, tmp_path / "t.png") == []
    plot_trajectories(runs, tmp_path / "t.png")
    (panel,) = axes()
    assert len(panel.lines) == 1


def test_an_attack_without_its_curve_is_left_out(make_run, tmp_path):
    runs = load_runs([make_run(evaluation={"attacks": {"relearn": {"forget_prob": 0.5}}})])
    assert plot_relearning(runs, tmp_path / "r.png") == []


PLAN = {"attribution": {"weights": 5}, "training": {"weights": 5, "moments": 7}}


@pytest.fixture
def peaks(make_run, monkeypatch, tmp_path):
    """`peaks(**cost)`: what the figure of memory shows of a run."""
    shown = []
    monkeypatch.setattr(drawn, "draw_peaks", lambda peaks: shown.extend(peaks) or new_figure(1, 1))

    def plot(**cost):
        plot_memory(load_runs([make_run(training=TRAINING | {"cost": TRAINING["cost"] | cost})]), tmp_path / "m.png")
        return shown

    return plot


def test_memory_is_predicted_beside_measured(peaks):
    attribution, training = peaks(memory_plan=PLAN)
    assert (attribution.label, training.label) == ("run: attribution", "run: training")
    assert training.predicted == {"weights": 5, "moments": 7}
    assert (training.measured, training.measured_is) == (2_500_000_000, "the whole process")


def test_the_context_is_left_out_where_torch_does_not_measure_it(peaks):
    (training,) = peaks(memory_plan={"attribution": None, "training": PLAN["training"] | {"CUDA context": 9}})
    assert training.predicted == {"weights": 5, "moments": 7}
    assert training.measured_is == "allocated by torch"


def test_a_run_without_a_prediction_has_no_bars(peaks):
    assert peaks(memory_plan=None) == []
