import json

import pytest

from wagle_trl.cli.main import main
from wagle_trl.evaluation.tofu import read_records


@pytest.fixture
def eval_options(saved_model, data, tmp_path):
    return [
        "eval",
        "--model_name_or_path",
        saved_model,
        *data,
        "--output_dir",
        str(tmp_path / "e"),
        "--max_new_tokens",
        "4",
    ]


def test_eval_writes_records_and_a_summary(eval_options, data, tmp_path, capsys):
    assert main([*eval_options, "--unseen_dataset", data[3], "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert 0 < content["forget_prob"] < 1
    assert content["unseen_retain_prob"] == pytest.approx(content["retain_prob"])
    assert "forget_rougeL_recall" in content
    records = read_records(tmp_path / "e" / "wagle_records.jsonl")
    assert {record["set"] for record in records} == {"forget", "retain", "unseen_retain"}
    assert json.loads((tmp_path / "e" / "wagle_eval.json").read_text())["forget_prob"] == content["forget_prob"]


def test_without_generation_there_is_no_rouge(eval_options, capsys):
    assert main([*eval_options, "--generate", "false", "--json"]) == 0
    assert "forget_rougeL_recall" not in json.loads(capsys.readouterr().out)


def test_records_of_a_retain_only_model_give_the_forget_quality(saved_model, write_jsonl, tmp_path, capsys):
    rows = [
        {
            "question": f"what is {i}",
            "answer": f"{i}",
            "paraphrased_answer": f"it is {i}",
            "perturbed_answer": ["7", "no"],
        }
        for i in range(6)
    ]
    options = [
        "eval",
        "--model_name_or_path",
        saved_model,
        "--forget_dataset",
        write_jsonl("p", rows),
        "--generate",
        "false",
    ]
    reference = tmp_path / "reference"
    assert main([*options, "--output_dir", str(reference)]) == 0
    capsys.readouterr()
    again = [*options, "--output_dir", str(tmp_path / "again"), "--json"]
    assert main([*again, "--reference_records", str(reference / "wagle_records.jsonl")]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["forget_quality"] == 1.0 and content["forget_quality_ks"] == 0.0
    assert "forget_truth_ratio" in content
