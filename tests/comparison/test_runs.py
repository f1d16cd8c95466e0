import json
import math
from pathlib import Path

import pytest

from wagle_trl.comparison.runs import labels, load_runs

from .conftest import EVALUATION, TRAINING


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["/a/npo", "/a/sft/"], ["npo", "sft"]),
        (["/a/one/out", "/a/two/out"], ["one/out", "two/out"]),
        (["/a/x/out", "/b/x/out", "/b/y/out", "/b/z"], ["a/x/out", "b/x/out", "y/out", "z"]),
        (["/out", "/a/out"], ["/out", "a/out"]),
    ],
    ids=["last names", "same last name", "as long as it takes for each", "one path is the end of another"],
)
def test_a_label_is_the_shortest_end_of_a_path_that_no_other_has(folders, expected):
    assert labels(folders) == expected


def test_a_run_that_is_given_twice_is_refused(make_run):
    folder = make_run()
    with pytest.raises(ValueError, match="run is given twice"):
        load_runs([folder, str(Path(folder) / ".." / "run")])


def test_the_numbers_of_a_run_are_what_was_done_what_was_kept_and_what_was_measured(make_run):
    (run,) = load_runs([make_run(evaluation=EVALUATION)])
    numbers = run.numbers()
    assert numbers == json.loads(json.dumps(numbers))
    setup = {
        "objective": "NPO",
        "base_model": "/models/my/base",
        "mask_score": "fisher_ratio",
        "mask_density": 0.0499999,
        "learning_rate": 2e-5,
        "steps": 10,
        "attribution_peak_bytes": 1_234_000_000,
        "training_peak_bytes": 2_500_000_000,
    }
    assert setup.items() <= numbers.items()
    kept = {
        "final_forget": 0.1,
        "final_retain": 0.8,
        "final_unseen_retain": 0.55,
        "step_at_0.3": 7.5,
        "retain_at_0.3": 0.85,
        "unseen_retain_at_0.3": 0.65,
        "step_at_0.1": 10,
        "retain_at_0.1": 0.8,
        "unseen_retain_at_0.1": 0.55,
    }
    assert {name: numbers[name] for name in kept} == pytest.approx(kept)
    measured = {name: value for name, value in EVALUATION.items() if isinstance(value, float)}
    assert measured.items() <= numbers.items()
    attacked = {"relearn_forget_prob": 0.51, "quantize_int8_forget_prob": 0.14, "quantize_int8_retain_prob": 0.87}
    attacked["quantize_int8_rounding"] = "nearest"
    assert attacked.items() <= numbers.items()
    assert len(numbers) == len(setup) + len(kept) + len(measured) + len(attacked)


def test_an_evaluation_of_other_weights_is_not_that_of_the_run(make_run):
    evaluation = EVALUATION | {"fingerprint": "b"}
    (run,) = load_runs([make_run(training=TRAINING | {"fingerprint": "a"}, evaluation=evaluation)])
    assert not run.measured() and not run.attacks and "forget_prob" not in run.numbers()
    assert run.remarks == ["wagle_eval.json in its folder is of other weights. It is left out."]
    (run,) = load_runs([make_run("same", training=TRAINING | {"fingerprint": "b"}, evaluation=evaluation)])
    assert run.measured()["forget_prob"] == EVALUATION["forget_prob"] and not run.remarks


def test_rows_that_were_cut_are_remarked(make_run):
    counted = {"rows": 40, "rows_cut": 1, "given": 4000, "scored": 1438}
    whole = counted | {"rows_cut": 0, "scored": 4000}
    (run,) = load_runs([make_run(training=TRAINING | {"answer_tokens": {"forget": counted, "retain": whole}})])
    assert run.remarks == ["Of the forget set, 1 of 40 rows are cut, 2,562 answer tokens (64.0%) are not scored."]


def test_what_is_not_known_is_left_out(make_run):
    (run,) = load_runs([make_run(training=TRAINING | {"mask": None, "log_history": [], "cost": {}})])
    assert run.numbers() == {"objective": "NPO", "base_model": "/models/my/base", "learning_rate": 2e-5}


def test_a_level_that_was_not_reached_is_left_out(make_run):
    (run,) = load_runs([make_run(training=TRAINING | {"log_history": TRAINING["log_history"][:1]})])
    assert run.numbers()["final_forget"] == 0.9
    assert not [name for name in run.numbers() if "_at_" in name]


def test_a_model_that_was_only_evaluated_is_a_run_with_the_numbers_of_that(make_run):
    (run,) = load_runs([make_run(training=None, evaluation={"model": "base", "forget_prob": 0.9})])
    assert run.numbers() == {"forget_prob": 0.9}
    assert run.trajectory == {"step": [], "forget": []}
    assert not run.has_mask


def test_the_mask_is_read_where_there_is_one(make_run):
    masked, dense = load_runs([make_run("masked", mask=True), make_run("dense")])
    assert 0.2 < masked.load_mask().density < 0.4
    assert not dense.has_mask


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (None, "", "neither wagle_report.json .* nor wagle_eval.json"),
        ("wagle_report.json", '{"objective": ', "wagle_report.json, line 1 is not readable as JSON"),
        ("wagle_eval.json", "[]", "wagle_eval.json: the content should be an object, got a list"),
    ],
    ids=["not a run", "truncated", "something else"],
)
def test_a_folder_that_is_no_run_is_named(file, text, message, tmp_path):
    if file is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_runs([str(tmp_path)])
    assert str(tmp_path) in str(error.value)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"No run at .*missing': the folder does not exist"):
        load_runs([str(tmp_path / "missing")])


BAD_CONTENT = {
    "numbers as text": ("wagle_eval.json", {"forget_prob": "0.1"}, "'forget_prob' should be a number, got \"0.1\""),
    "attacks as a list": ("wagle_eval.json", {"attacks": ["relearn"]}, "'attacks' should be an object, got a list"),
    "a curve of numbers": ("wagle_eval.json", {"attacks": {"relearn": {"curve": [1]}}}, "'attacks.relearn.curve[0]'"),
    "a history of text": ("wagle_report.json", {"log_history": "long"}, "'log_history' should be a list"),
    "a mask of numbers": ("wagle_report.json", {"mask": 3}, "'mask' should be an object, got 3"),
    "peaks as a list": (
        "wagle_report.json",
        {"cost": {"peak_memory_bytes": [1]}},
        "'cost.peak_memory_bytes' should be",
    ),
    "a rate as text": (
        "wagle_report.json",
        {"options": {"learning_rate": "1"}},
        "'options.learning_rate' should be a number",
    ),
}


@pytest.mark.parametrize(("file", "content", "message"), BAD_CONTENT.values(), ids=BAD_CONTENT)
def test_a_file_of_another_shape_is_refused_with_its_field(file, content, message, tmp_path):
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        load_runs([str(tmp_path)])
    assert str(caught.value).startswith(f"{tmp_path / file}: {message}")


def test_losses_that_are_no_numbers_any_more_are_read_and_unknown(make_run):
    history = [{"loss": float("nan"), "forget_probability": probability, "step": 1} for probability in (0.9, math.nan)]
    training = {"log_history": history, "options": {"seed": math.nan}}
    (run,) = load_runs([make_run(training=training, evaluation={"forget_prob": math.inf})])
    assert run.numbers() == {"steps": 1}
