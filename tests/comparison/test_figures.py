import math
import os
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from wagle_trl.comparison import figures
from wagle_trl.comparison.figures import COLOURS, plot_relearning, plot_trajectories
from wagle_trl.comparison.groups import group_runs
from wagle_trl.comparison.runs import load_runs

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
    made, make = [], figures._figure

    def record(width):
        made.append(make(width))
        return made[-1]

    monkeypatch.setattr(figures, "_figure", record)
    return lambda: made[-1].axes


def test_trajectories_are_a_png_with_a_colour_for_each_run(runs, tmp_path):
    picture = pixels(plot_trajectories(runs, tmp_path / "t.png")[0])
    assert picture.shape[1] == 1800 and 700 < picture.shape[0] < 900
    assert count(picture, COLOURS[0]) > 5000
    assert count(picture, COLOURS[1]) > 50  # one measurement, and the legend
    assert count(picture, COLOURS[2]) == 0  # only evaluated
    assert sorted(os.listdir(tmp_path))[-2:] == ["t.pdf", "t.png"]
    assert (tmp_path / "t.pdf").read_bytes().startswith(b"%PDF")


def test_the_trade_off_is_of_rows_that_took_no_part_if_all_runs_watched_them(make_run, axes, tmp_path):
    seen_only = [{k: v for k, v in entry.items() if "unseen" not in k} for entry in TRAINING["log_history"]]
    both, one = make_run("both"), make_run("one", training=TRAINING | {"log_history": seen_only})
    plot_trajectories(load_runs([both]), tmp_path / "t.png")
    assert axes()[1].get_ylabel() == "unseen retain probability"
    assert axes()[1].lines[0].get_xydata().tolist() == [[0.9, 0.95], [0.1, 0.55]]
    assert axes()[1].get_xlim()[0] > axes()[1].get_xlim()[1]
    plot_trajectories(load_runs([both, one]), tmp_path / "t.png")
    assert axes()[1].get_ylabel() == "retain probability"
    assert axes()[1].lines[0].get_xydata().tolist() == [[0.9, 1.0], [0.1, 0.8]]


def test_sets_differ_by_line_and_runs_by_colour(make_run, axes, tmp_path):
    plot_trajectories(load_runs([make_run("a"), make_run("b")]), tmp_path / "t.png")
    drawn = [(line.get_color(), line.get_linestyle()) for line in axes()[0].lines]
    assert drawn == [(colour, line) for colour in COLOURS[:2] for line in ("-", "--", ":")]


def test_a_run_keeps_its_colour_where_others_are_left_out(make_run, axes, tmp_path):
    runs = load_runs([make_run("a"), make_run("b", evaluation=EVALUATION)])
    plot_relearning(runs, tmp_path / "r.png")
    (line,) = axes()[0].lines
    assert line.get_color() == COLOURS[1]
    assert line.get_xydata().tolist() == [[0, 0.12], [20, 0.51]]
    assert count(pixels(tmp_path / "r.png"), COLOURS[1]) > 1000


def test_runs_beyond_the_colours_differ_by_marker(make_run, axes, tmp_path):
    plot_trajectories(load_runs([make_run(f"a run of a long name {i}") for i in range(8)]), tmp_path / "t.png")
    for lines in (axes()[0].lines[::3], axes()[1].lines):
        assert lines[0].get_color() == lines[7].get_color()
        assert lines[0].get_marker() != lines[7].get_marker()
    assert pixels(tmp_path / "t.png").shape[0] > 780  # the legend takes more lines, the panels stay


@pytest.mark.parametrize("plot", [plot_trajectories, plot_relearning])
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


def test_a_group_is_one_mean_line_with_a_band(seeds, axes, tmp_path):
    plot_trajectories(group_runs(load_runs(seeds())), tmp_path / "t.png")
    over_steps, trade_off = axes()
    assert [line.get_linestyle() for line in over_steps.lines] == ["-", "--", ":"]
    assert over_steps.lines[0].get_xydata() == pytest.approx(np.array([[0, 0.9], [10, 0.1]]))
    assert over_steps.lines[2].get_xydata()[1].tolist() == [10, pytest.approx(0.55)]
    assert len(over_steps.collections) == 3
    band = over_steps.collections[2].get_paths()[0].vertices
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # Student's t with 2 degrees of freedom
    assert band[band[:, 0] == 10][:, 1] == pytest.approx([0.55 - half, 0.55 + half, 0.55 + half], abs=1e-6)
    at = dict(trade_off.lines[0].get_xydata().tolist())
    assert at[0.3] == pytest.approx(0.65) and at[0.1] == pytest.approx(0.55)  # as in the table


HOSTILE = [r"$\frac$", r"$x$ $\frac{$", "\x1b[2J\u202e", "_hidden", "x" * 5000, "中文"]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_is_a_label_like_any_other(name, make_run, axes, tmp_path):
    history = [{"step": i, "forget_probability": 1 - i, f"{name}_probability": 0.5} for i in range(2)]
    (run,) = load_runs([make_run(training={"log_history": history}, evaluation=EVALUATION)])
    run = replace(run, label=name)
    plot_trajectories([run], tmp_path / "t.png")
    (legend,) = axes()[0].figure.legends
    (label,) = (text.get_text() for text in legend.get_texts())
    assert label.isprintable() and 0 < len(label) < 80
    plot_relearning([run], tmp_path / "r.png")


def test_a_run_that_watched_the_forget_rows_alone_has_no_trade_off(make_run, axes, tmp_path):
    history = [{"step": i, "forget_probability": 1 - i} for i in range(2)]
    plot_trajectories(load_runs([make_run(training={"log_history": history})]), tmp_path / "t.png")
    over_steps, trade_off = axes()
    assert len(over_steps.lines) == 1 and len(trade_off.lines) == 2  # the levels


def test_an_attack_without_its_curve_is_left_out(make_run, tmp_path):
    runs = load_runs([make_run(evaluation={"attacks": {"relearn": {"forget_prob": 0.5}}})])
    assert plot_relearning(runs, tmp_path / "r.png") == []
