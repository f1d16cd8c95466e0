import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from wagle_kernels import ScoreSpec
from wagle_trl.attribution.lazy_scores import LazyScores
from wagle_trl.attribution.report import (
    baseline_overlaps,
    draw_masks,
    mask_report,
    plot_mask,
    plot_masks,
    report_tables,
)
from wagle_trl.attribution.selection import select
from wagle_trl.files.run_folder import MASK_FILE
from wagle_trl.masks.info import MaskInfo
from wagle_trl.masks.mask import WeightMask

from ..support.fuzzing import check_shown
from ..support.pictures import check_legible

SHAPES = {f"model.layers.{i}.{part}.weight": (20, 9) for i in range(3) for part in ("mlp.up_proj", "self_attn.q_proj")}
SHAPES["model.norm.weight"] = (11,)
SELF = {"gradient": "|g_f|", "snip": "|theta*g_f|", "product": "|g_f*g_r|", "magnitude": "|theta|"}
INFO = MaskInfo(score="wagle", scale=0.05)


def scored_by(formula, scale=1.0, forget=True, retain=True, seed=0):
    generator = torch.Generator().manual_seed(0)
    theta, f, r = ({n: torch.randn(s, generator=generator) for n, s in SHAPES.items()} for _ in range(3))
    return LazyScores(theta, ScoreSpec(formula, scale, seed), f if forget else None, r if retain else None)


@pytest.fixture
def mask():
    return select(scored_by("wagle", scale=0.5), 0.1, INFO)


@pytest.mark.parametrize(("formula", "label"), SELF.items())
def test_a_score_overlaps_wholly_with_itself_and_little_with_chance(formula, label):
    scored = scored_by(formula)
    overlaps = baseline_overlaps(select(scored, 0.1), scored)
    assert overlaps[label] == 1.0
    assert 0 < overlaps["random"] < 0.2  # 0.053 expected
    assert all(overlap < 0.7 for baseline, overlap in overlaps.items() if baseline != label)


def test_a_degenerate_gamma_shows():
    scored = scored_by("wagle", scale=1e-9)
    assert baseline_overlaps(select(scored, 0.1), scored)["|g_f*g_r|"] == 1.0


def test_a_random_mask_is_compared_with_another_seed():
    scored = scored_by("random", seed=3)
    assert baseline_overlaps(select(scored, 0.1), scored)["random"] < 0.2


def test_overlaps_are_those_of_masks_of_the_same_size(mask):
    scored = scored_by("wagle", scale=0.5)
    baseline = select(scored_by("snip"), 0.1)
    assert baseline.num_selected == mask.num_selected
    assert baseline_overlaps(mask, scored)["|theta*g_f|"] == mask.jaccard(baseline)


@pytest.mark.parametrize("density", [0.003, 1 / 3, 0.5, 1.0])
def test_baselines_have_exactly_as_many_bits_at_any_density(density):
    scored = scored_by("gradient")
    assert baseline_overlaps(select(scored, density), scored)["|g_f|"] == 1.0


@pytest.mark.parametrize(
    ("statistics", "labels"),
    [
        ({"forget": False, "retain": False}, ["|theta|", "random"]),
        ({"retain": False}, ["|g_f|", "|theta*g_f|", "|theta|", "random"]),
        ({}, ["|g_f|", "|theta*g_f|", "|g_f*g_r|", "|theta|", "random"]),
    ],
    ids=["none", "forget", "both"],
)
def test_only_baselines_whose_statistics_are_there_are_computed(statistics, labels):
    scored = scored_by("magnitude", **statistics)
    overlaps = baseline_overlaps(select(scored, 0.1), scored)
    assert list(overlaps) == ["|g_f|", "|theta*g_f|", "|g_f*g_r|", "|theta|", "random"]
    assert [label for label, overlap in overlaps.items() if overlap is not None] == labels


def test_a_report_has_its_fields_and_is_json(mask):
    report = mask_report(mask)
    assert report == json.loads(json.dumps(report))
    fields = {"num_selected", "numel", "density", "info", "density_by_layer", "density_by_module", "jaccard"}
    assert set(report) == fields
    assert (report["num_selected"], report["numel"]) == (109, 6 * 180 + 11)
    assert report["density"] == 109 / 1091
    assert report["info"] == mask.info.to_metadata()
    assert list(report["density_by_layer"]) == ["0", "1", "2", "-"]
    assert list(report["density_by_module"]) == ["mlp.up_proj.weight", "self_attn.q_proj.weight", "model.norm.weight"]


def test_tables_print_what_the_report_holds(mask):
    mask.info = replace(mask.info, jaccard={"|g_f|": 0.25, "|g_f*g_r|": None})
    report = mask_report(mask)
    console = Console(width=100, record=True, file=io.StringIO())
    for table in report_tables(report):
        console.print(table)
    text = console.export_text()
    assert "109 of 1,091 weights selected by 'wagle'" in text
    assert all(part in text for part in ("|g_f|", "0.250", "|g_f*g_r|", "not computed"))
    for part in ("module", "layer"):
        for name, density in report[f"density_by_{part}"].items():
            shown = "other" if name == "-" else name
            assert shown in text and f"{density:.4f}" in text


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_a_plot_is_a_png_that_shows_the_mask(mask, tmp_path):
    path = plot_mask(mask, tmp_path / "mask.png")
    picture = pixels(path)
    assert min(picture.shape[:2]) > 100
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    assert os.listdir(tmp_path) == ["mask.png"]
    other = pixels(plot_mask(~mask, tmp_path / "other"))  # any name is a PNG
    assert other.shape != picture.shape or (other != picture).any()


@pytest.mark.parametrize(("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("PDF", b"%PDF")])
def test_the_suffix_chooses_another_kind_of_picture(suffix, start, mask, tmp_path):
    assert plot_mask(mask, tmp_path / f"mask.{suffix}").read_bytes().startswith(start)


def test_a_picture_names_density_model_and_the_other_weights():
    masks = {"model.layers.0.weight": torch.tensor([1.0, 0.0]), "model.norm.weight": torch.tensor([0.0, 0.0])}
    mask = WeightMask.from_dense(masks, MaskInfo(base_model="/home/me/models/small$"))
    axes = draw_masks([("wagle", mask)]).axes[0]
    assert axes.get_title() == "wagle\n1 of 4 weights (25%)\nof small\\$"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "outside layers"]


LLAMA = [f"{kind}_proj" for kind in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up")]
LLAMA += ["mlp.down_proj", "input_layernorm", "post_attention_layernorm"]


@pytest.mark.parametrize("layers", [2, 80])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_picture_can_be_read_as_it_is_printed(count, layers):
    names = [f"model.layers.{layer}.{part}.weight" for layer in range(layers) for part in LLAMA]
    bits = {name: torch.tensor([True, False]) for name in [*names, "model.norm.weight"]}
    mask = WeightMask.from_dense(bits, MaskInfo(score="fisher_ratio", base_model="user/a-model-of-a-long-name-1b"))
    figure = draw_masks([(f"a run of a long name {i}", mask) for i in range(count)])
    check_legible(figure)
    assert figure.get_figheight() < 10 * count


def test_an_interrupted_plot_leaves_the_old_one(mask, tmp_path, monkeypatch):
    path = plot_mask(mask, tmp_path / "mask.png")
    before = path.read_bytes()

    def fail(*paths):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        plot_mask(~mask, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["mask.png"]


def test_a_mask_of_one_bias_can_be_plotted(tmp_path):
    mask = WeightMask.from_dense({"bias": torch.tensor([True, False])})
    assert pixels(plot_mask(mask, tmp_path / "mask.png")).size


@pytest.mark.parametrize("count", [2, 5], ids=["one row", "two rows, one panel to spare"])
def test_several_masks_are_in_one_picture(count, mask, tmp_path):
    masks = [(f"run {i}", mask) for i in range(count)]
    alone, together = pixels(plot_mask(mask, tmp_path / "one")), pixels(plot_masks(masks, tmp_path / "all.png"))
    assert together.shape[1] > alone.shape[1] or together.shape[0] > 1.5 * alone.shape[0]


def test_masks_of_different_models_are_in_one_picture(mask, tmp_path):
    other = WeightMask.from_dense({"bias": torch.tensor([True, False])})
    assert pixels(plot_masks([("a", mask), ("b", other)], tmp_path / "all.png")).size


def test_masks_share_one_scale_of_colours(mask):
    full = WeightMask.from_dense({name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()})
    first, second, _ = draw_masks([("a", mask), ("b", full)]).axes
    assert first.images[0].norm.vmax == second.images[0].norm.vmax == 1.0
    assert first.images[0].get_array().max() < 1.0


@pytest.mark.parametrize("score", ["[/x]", r"$\frac$", "$", "\x1b[2J\u202e", "_", "x" * 500, "a\nb"], ids=ascii)
def test_a_score_of_a_hostile_name_is_drawn_and_shown_like_any_other(score, tmp_path):
    masks = {name: torch.ones(2, 3) for name in ("model.layers.0.$\\frac$.weight", "b" * 900, "[/x]")}
    mask = WeightMask.from_dense(masks, MaskInfo(score=score))
    figure = draw_masks([(score, mask)])
    title, count = figure.axes[0].get_title().split("\n")
    assert title.isprintable() and len(title) < 80 and count == "18 of 18 weights (100%)"
    assert plot_mask(mask, tmp_path / "mask.png").stat().st_size > 1000
    check_shown(*report_tables(mask_report(mask)))


@pytest.mark.parametrize(
    ("name", "text"), [("jaccard", "[1]"), ("jaccard", '{"a": "b"}'), ("versions", "{"), ("versions", '{"a": 1}')]
)
def test_a_mask_whose_information_has_another_shape_is_refused(name, text, tmp_path):
    path = WeightMask.from_dense({"a": torch.ones(3)}, MaskInfo(others={name: text})).save(tmp_path)
    with pytest.raises(ValueError, match=f"{MASK_FILE}: {name}"):
        WeightMask.load(path)
