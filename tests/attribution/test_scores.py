from typing import get_args

import pytest
from transformers import HfArgumentParser
from trl import TrlParser

from wagle_kernels import FORMULAS
from wagle_trl.attribution.config import MaskConfig
from wagle_trl.attribution.scores import SCORES, ScoreName, get_score, parse_gamma, score_scale

READS_FORGET = {"wagle", "gradient", "snip", "product", "ratio", "fisher_ratio"}
READS_RETAIN = {"wagle", "product", "ratio", "fisher_ratio"}


def test_the_table_says_what_each_formula_reads():
    assert {score.formula for score in SCORES.values()} == set(FORMULAS)
    assert {name for name, score in SCORES.items() if score.statistic} == READS_FORGET
    assert {name for name, score in SCORES.items() if score.uses_retain} == READS_RETAIN
    assert [name for name, score in SCORES.items() if score.statistic == "fisher"] == ["fisher_ratio"]


def test_the_option_offers_the_scores_of_the_table():
    assert get_args(ScoreName) == tuple(SCORES)


def test_an_unknown_score_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown mask_score 'hessian'; expected one of wagle, .*, fisher_ratio\."):
        get_score("hessian")


@pytest.mark.parametrize(
    ("gamma", "parsed"), [("balanced", "balanced"), ("official", "official"), ("1e-3", 1e-3), (2, 2.0), (0.5, 0.5)]
)
def test_gamma_is_a_word_or_a_positive_number(gamma, parsed):
    assert parse_gamma(gamma) == parsed


@pytest.mark.parametrize("gamma", ["big", "", "0", 0, -1.0, "nan", "inf", float("nan"), None])
def test_any_other_gamma_is_refused(gamma):
    with pytest.raises(ValueError, match=f"'balanced', 'official' or a positive number, got '{gamma}'"):
        parse_gamma(gamma)


@pytest.mark.parametrize(
    ("name", "gamma", "scale"),
    [
        ("wagle", "balanced", 0.006 / 0.02),
        ("wagle", "official", 1e-6),
        ("wagle", 0.25, 0.25),
        ("ratio", "balanced", 3 * 0.006),
        ("ratio", "official", 3 * 0.006),
        ("fisher_ratio", 0.25, 3 * 0.006),
        ("gradient", 0.25, 1.0),
        ("random", "balanced", 1.0),
    ],
)
def test_the_scale_follows_from_gamma_or_eps_and_the_means(name, gamma, scale):
    assert score_scale(SCORES[name], gamma, eps=3.0, mean_theta=0.02, mean_retain=0.006) == pytest.approx(scale)


@pytest.mark.parametrize(
    ("name", "theta", "retain"), [("wagle", 0.02, 0), ("wagle", 0, 0.1), ("fisher_ratio", 0.02, 0)]
)
def test_means_of_zero_give_no_scale(name, theta, retain):
    with pytest.raises(ValueError, match=r"retain gradients \(or the weights\) in scope are all zero"):
        score_scale(SCORES[name], "balanced", 1.0, mean_theta=theta, mean_retain=retain)


@pytest.mark.parametrize("gamma", ["official", 0.1])
def test_a_given_gamma_needs_no_means(gamma):
    assert score_scale(SCORES["wagle"], gamma, 1.0, mean_theta=0.0, mean_retain=0.0) > 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"mask_score": "hessian"}, "Unknown mask_score 'hessian'"),
        ({"mask_gamma": "-1"}, "mask_gamma must be .* got '-1'"),
        ({"mask_density": 0}, r"mask_density must be in \(0, 1\], got 0"),
        ({"mask_density": 1.5}, r"mask_density must be in \(0, 1\], got 1.5"),
        ({"mask_density": float("nan")}, r"mask_density must be in \(0, 1\], got nan"),
        ({"mask_eps": 0.0}, "mask_eps must be positive and finite, got 0.0"),
        ({"mask_eps": float("nan")}, "mask_eps must be positive and finite, got nan"),
        ({"mask_eps": float("inf")}, "mask_eps must be positive and finite, got inf"),
        ({"mask_scope": "model.layers.*"}, r"mask_scope must be a list of patterns, got 'model\.layers\.\*'"),
        ({"mask_exclude": "*norm*"}, r"mask_exclude must be a list of patterns, got '\*norm\*'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_mask_options_fail_at_construction_and_echo_the_value(option, message):
    with pytest.raises(ValueError, match=message):
        MaskConfig(**option)


def test_the_default_options_are_valid():
    config = MaskConfig()
    assert (config.mask_score, config.mask_density, config.mask_gamma) == ("wagle", 0.05, "balanced")


@pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
def test_choices_are_parsed_from_the_command_line_and_offered_there(parser, capsys):
    args = ["--mask_score", "snip", "--attribution_memory", "host", "--mask_gamma", "0.5"]
    assert parser(MaskConfig).parse_args_into_dataclasses(args) == (
        MaskConfig("snip", mask_gamma="0.5", attribution_memory="host"),
    )
    with pytest.raises(SystemExit):
        parser(MaskConfig).parse_args_into_dataclasses(["--mask_score", "luck"])
    message = capsys.readouterr().err.splitlines()[-1]
    assert "invalid choice: 'luck'" in message and all(name in message for name in SCORES)


def test_a_wrong_choice_in_yaml_is_refused_by_the_options_themselves(tmp_path):
    (tmp_path / "mask.yaml").write_text("mask_score: luck\n")
    with pytest.raises(ValueError, match="Unknown mask_score 'luck'; expected one of wagle, gradient"):
        TrlParser(MaskConfig).parse_args_and_config(["--config", str(tmp_path / "mask.yaml")])
