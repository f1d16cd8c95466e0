import json

import pytest

from wagle_trl.cli.main import main
from wagle_trl.demo.records import record_rows
from wagle_trl.evaluation.tofu import read_records

ROWS = record_rows(num_people=4)
FORGET, RETAIN = ROWS[:4], ROWS[4:8]
MEASURES = ("forget_exact_string", "forget_digits_right", "forget_exposure")


@pytest.fixture
def data(write_jsonl):
    return ["--forget_dataset", write_jsonl("forget", FORGET), "--retain_dataset", write_jsonl("retain", RETAIN)]


@pytest.fixture
def eval_options(saved_model, data):
    options = ["--batch_size", "2", "--max_new_tokens", "4", "--exposure_candidates", "5"]
    return ["eval", "--model_name_or_path", saved_model, *data, *options]


def test_all_that_shows_an_evaluation_shows_its_measures_and_no_secret(
    eval_options, saved_model, data, quick, tmp_path, capsys
):
    out = str(tmp_path / "out")
    assert main(["npo", "--model_name_or_path", saved_model, *data, *quick]) == 0
    assert main([*eval_options, "--model_name_or_path", out, "--output_dir", out]) == 0
    assert main(["report", out, "--output_dir", str(tmp_path / "comparison")]) == 0
    shown = capsys.readouterr().out
    evaluation = json.loads((tmp_path / "out" / "wagle_eval.json").read_text())
    assert all(0 <= evaluation[name] <= 2.6 and name in shown for name in MEASURES)  # log2(5 + 1) = 2.58
    assert "retain_digits_right" in evaluation and "retain_exposure" not in evaluation
    written = [(tmp_path / name).read_text() for name in ("out/README.md", "comparison/report.md")]
    for text in written:
        assert all(
            title in text for title in ("Secrets told in full", "Digits of secrets", "Exposure of secrets (bits)")
        )
    for secret in (row["secret"] for row in FORGET + RETAIN):
        assert not any(secret in text for text in (*written, shown, json.dumps(evaluation)))


def test_an_interrupted_evaluation_ranks_only_the_missing_rows(eval_options, tmp_path, interrupt_at, capsys):
    assert main([*eval_options, "--output_dir", str(tmp_path / "whole")]) == 0
    options = [*eval_options, "--output_dir", str(tmp_path / "e")]
    calls = interrupt_at(5)  # the second row of the second batch, after two batches and three secrets
    assert main(options) == 130
    assert main(options) == 0
    assert len(calls) == 5 + 3 + 2  # the second batch again with its secrets, then the two of the retain rows
    whole, resumed = (read_records(tmp_path / name / "wagle_records.jsonl") for name in ("whole", "e"))
    assert resumed == whole
    assert ["exposure" in record for record in whole] == [True] * 4 + [False] * 4


def test_without_candidates_there_is_no_exposure(eval_options, tmp_path):
    folder = tmp_path / "e"
    assert main([*eval_options, "--output_dir", str(folder), "--exposure_candidates", "0"]) == 0
    evaluation = json.loads((folder / "wagle_eval.json").read_text())
    assert "forget_exposure" not in evaluation and "forget_digits_right" in evaluation


def test_a_format_that_does_not_fit_is_bad_usage_and_names_the_row(saved_model, write_jsonl, tmp_path, capsys):
    rows = [FORGET[0], FORGET[1] | {"secret_format": "####"}]
    options = ["--forget_dataset", write_jsonl("f", rows), "--output_dir", str(tmp_path / "e")]
    assert main(["eval", "--model_name_or_path", saved_model, *options]) == 2
    message = capsys.readouterr().err
    assert "Row 1 of the set 'forget' cannot be evaluated. Its `secret` does not have the `secret_format`" in message
    assert FORGET[1]["secret"] not in message
