import json

import pytest

from wagle_trl.cli import arguments, evaluate
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


def with_alternatives(row):
    return row | {"paraphrased_answer": "it is so", "perturbed_answer": ["7", "no"]}


@pytest.mark.parametrize(
    ("alternatives", "record", "message"),
    [
        (False, {"set": "forget"}, "needs forget rows, all of them with `perturbed_answer`"),
        (True, {"set": "forget", "avg_gt_loss": 1.0}, "1 of 1 records have no losses of perturbed answers"),
        (True, {"set": "retain", "avg_gt_loss": 1.0}, "has no records of the set 'forget'"),
        (True, {"avg_gt_loss": 1.0}, "has no records of the set 'forget'"),
    ],
    ids=["rows", "losses", "other set", "no set"],
)
def test_a_reference_without_truth_ratios_is_refused_before_the_evaluation(
    alternatives, record, message, saved_model, write_jsonl, tmp_path, capsys
):
    row = {"question": "what is it", "answer": "it"}
    rows = [with_alternatives(row) if alternatives else row]
    options = ["eval", "--model_name_or_path", saved_model, "--forget_dataset", write_jsonl("f", rows)]
    options += ["--output_dir", str(tmp_path / "e"), "--reference_records", write_jsonl("reference", [record])]
    assert main(options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_a_model_that_is_not_there_leaves_no_folder(data, tmp_path, capsys):
    folder = tmp_path / "e"
    assert main(["eval", "--model_name_or_path", str(tmp_path / "none"), *data, "--output_dir", str(folder)]) == 2
    assert not folder.exists()


def test_all_model_options_reach_the_model_and_the_tokenizer(eval_options, monkeypatch):
    seen = {}

    def spy(cls):
        load = cls.from_pretrained
        monkeypatch.setattr(cls, "from_pretrained", lambda *args, **kw: seen.update({cls: kw}) or load(*args, **kw))

    spy(evaluate.AutoModelForCausalLM)
    spy(arguments.AutoTokenizer)
    options = ["--model_revision", "v1", "--dtype", "bfloat16", "--attn_implementation", "eager"]
    assert main([*eval_options, "--generate", "false", *options, "--trust_remote_code"]) == 0
    shared = {"revision": "v1", "trust_remote_code": True}
    assert seen[arguments.AutoTokenizer] == shared
    model_only = {"dtype": "bfloat16", "attn_implementation": "eager"}
    assert seen[evaluate.AutoModelForCausalLM] == shared | model_only


@pytest.mark.parametrize("option", ["--load_in_4bit", "--use_peft"])
def test_options_of_training_are_refused(option, eval_options, capsys):
    assert main([*eval_options, option]) == 2
    assert option in capsys.readouterr().err
