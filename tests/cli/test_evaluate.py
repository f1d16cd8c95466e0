import json

import pytest
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trl.cli import arguments
from wagle_trl.cli.main import main
from wagle_trl.data import tofu as tofu_rows
from wagle_trl.evaluation import tofu
from wagle_trl.evaluation.tofu import read_records
from wagle_trl.masks.fingerprint import model_fingerprint

from ..conftest import make_rows


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


@pytest.fixture
def holdout(write_jsonl):
    rows = make_rows(("Ulf", "Vic", "Wim", "Xan"))
    return ["--holdout_dataset", write_jsonl("holdout", rows)]


@pytest.fixture
def unseen(write_jsonl):
    rows = [{"question": f"who is {name}", "answer": f"{name} is a cook"} for name in ("Yan", "Zoe")]
    return ["--unseen_dataset", write_jsonl("unseen", rows)]


def test_eval_writes_records_and_a_summary(eval_options, unseen, tmp_path, capsys):
    assert main([*eval_options, *unseen, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert 0 < content["forget_prob"] < 1
    assert 0 < content["unseen_retain_prob"] < 1
    assert "forget_rougeL_recall" in content
    records = read_records(tmp_path / "e" / "wagle_records.jsonl")
    assert {record["set"] for record in records} == {"forget", "retain", "unseen_retain"}
    assert json.loads((tmp_path / "e" / "wagle_eval.json").read_text())["forget_prob"] == content["forget_prob"]


def test_the_summary_says_how_it_came_about(eval_options, data, holdout, tmp_path):
    assert main([*eval_options, *holdout, "--generate", "false"]) == 0
    first = json.loads((tmp_path / "e" / "wagle_eval.json").read_text())
    sources = {"forget_dataset": data[1], "retain_dataset": data[3], "holdout_dataset": holdout[1]}
    evaluation = {"batch_size": 16, "max_new_tokens": 4, "generate": False, "mia_k": 0.4, "dtype": "float32"}
    evaluation["exposure_candidates"] = 256
    scored = {"dataset_text_field": "text", "assistant_only_loss": False, "truncation_mode": "keep_start"}
    assert first["options"] == evaluation | sources | scored
    reference = ["--reference_records", str(tmp_path / "e" / "wagle_records.jsonl")]
    again = [*holdout, "--generate", "false", *reference, "--dtype", "bfloat16", "--output_dir", str(tmp_path / "f")]
    assert main([*eval_options, *again]) == 0
    second = json.loads((tmp_path / "f" / "wagle_eval.json").read_text())
    assert second["options"] == first["options"] | {"dtype": "bfloat16", "reference_records": reference[1]}


def test_the_fingerprint_is_that_of_the_weights_on_disk(eval_options, tiny_model, tmp_path):
    expected = {"auto": model_fingerprint(tiny_model()), "float16": None}  # fp16 rounds small weights otherwise
    for dtype, fingerprint in (expected | {"bfloat16": expected["auto"]}).items():
        assert main([*eval_options, "--generate", "false", "--dtype", dtype]) == 0
        assert json.loads((tmp_path / "e" / "wagle_eval.json").read_text()).get("fingerprint") == fingerprint


def test_of_adapters_it_is_that_of_the_merged_model(eval_options, saved_model, tiny_model, tmp_path):
    adapted = get_peft_model(tiny_model(), LoraConfig(init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapters")
    AutoTokenizer.from_pretrained(saved_model).save_pretrained(tmp_path / "adapters")
    config = PeftConfig.from_pretrained(tmp_path / "adapters")
    config.base_model_name_or_path = saved_model
    config.save_pretrained(tmp_path / "adapters")
    assert main([*eval_options, "--generate", "false", "--model_name_or_path", str(tmp_path / "adapters")]) == 0
    content = json.loads((tmp_path / "e" / "wagle_eval.json").read_text())
    assert content["fingerprint"] == model_fingerprint(adapted.merge_and_unload())


def test_a_card_shows_no_evaluation_of_the_run_before(saved_model, data, quick, tmp_path):
    out = str(tmp_path / "out")
    train = ["npo", "--model_name_or_path", saved_model, *data, *quick, "--learning_rate", "1e-2"]
    evaluate = ["eval", "--model_name_or_path", out, *data, "--output_dir", out, "--generate", "false"]
    assert main(train) == main(evaluate) == 0
    assert "model-index" in (tmp_path / "out" / "README.md").read_text()
    assert main([*train, "--max_steps", "3"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "model-index" not in card and "No evaluation is recorded" in card
    assert (tmp_path / "out" / "set_aside-1" / "wagle_eval.json").exists()
    assert main(evaluate) == 0
    assert "model-index" in (tmp_path / "out" / "README.md").read_text()


def test_holdout_rows_give_membership_inference_and_a_reference_gives_privleak(
    eval_options, holdout, tmp_path, capsys
):
    assert main([*eval_options, *holdout, "--generate", "false"]) == 0
    capsys.readouterr()
    reference = tmp_path / "e" / "wagle_records.jsonl"
    again = [*eval_options, *holdout, "--generate", "false", "--reference_records", str(reference), "--json"]
    assert main([*again, "--output_dir", str(tmp_path / "again")]) == 0
    content = json.loads(capsys.readouterr().out)
    attacks = ("loss", "zlib", "min_k", "min_k_plus_plus")
    assert all(0 <= content[f"mia_{attack}_auc"] <= 1 for attack in attacks)
    assert content["privleak"] == 0.0
    assert "forget_quality" not in content
    assert 0 <= content["forget_extraction_strength"] <= content["forget_exact_memorization"] <= 1


def test_a_base_model_gives_the_divergence_from_it_and_the_weights_changed(
    eval_options, saved_model, holdout, tiny_model, tmp_path, capsys
):
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data[0] += 0.5
    model.save_pretrained(tmp_path / "unlearned")
    options = [*eval_options, *holdout, "--generate", "false", "--base_model_name_or_path", saved_model]
    AutoTokenizer.from_pretrained(saved_model).save_pretrained(tmp_path / "unlearned")
    assert main([*options, "--model_name_or_path", str(tmp_path / "unlearned"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["kl_to_base_holdout"] > 0
    assert "kl_to_base_retain" not in content
    total = sum(parameter.numel() for parameter in model.parameters())
    assert content["weights_changed"] == pytest.approx(32 / total)
    shares = content["weights_changed_by_layer"]
    assert (shares["-"], shares["0"]) == (0.0, 0.0) and shares["1"] > 0
    written = json.loads((tmp_path / "e" / "wagle_eval.json").read_text())
    assert written["base_model"] == saved_model
    assert written["weights_changed_by_layer"] == shares


def test_the_table_of_a_base_model_names_every_layer(eval_options, saved_model, capsys):
    assert main([*eval_options, "--generate", "false", "--base_model_name_or_path", saved_model]) == 0
    shown = capsys.readouterr().out
    assert "kl_to_base_retain" in shown and "Weights changed" in shown


def test_a_base_model_of_another_architecture_is_refused_before_the_evaluation(
    eval_options, tiny_model, tmp_path, monkeypatch, capsys
):
    tiny_model(num_hidden_layers=1).save_pretrained(tmp_path / "other")
    monkeypatch.setattr(tofu, "answer_likelihoods", lambda *args: pytest.fail("rows were scored"))
    assert main([*eval_options, "--base_model_name_or_path", str(tmp_path / "other")]) == 2
    assert "The base model has another architecture: 9 parameters differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--holdout_dataset", "h.jsonl", "--tofu_split", "forget10"],
            "Give either --holdout_dataset or --tofu_split",
        ),
        (["--batch_size", "0"], "`batch_size` is 0"),
        (["--mia_k", "20"], "`mia_k` is 20.0"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_a_model_is_loaded(
    options, message, data, tmp_path, write_jsonl, capsys
):
    rows = [] if "--tofu_split" in options else data
    assert main(["eval", "--model_name_or_path", str(tmp_path / "none"), *rows, *options]) == 2
    assert message in capsys.readouterr().err


def test_rows_that_cannot_serve_are_refused_before_a_model_is_loaded(data, tmp_path, capsys):
    none = ["eval", "--model_name_or_path", str(tmp_path / "none")]
    assert main([*none, "--holdout_dataset", data[3]]) == 2
    assert "--holdout_dataset needs --forget_dataset" in capsys.readouterr().err
    assert main([*none, *data[:2], "--base_model_name_or_path", "base"]) == 2
    assert "A base model needs text for the comparison" in capsys.readouterr().err
    assert main([*none, *data, "--unseen_dataset", data[3]]) == 2
    assert "10 rows of the set 'unseen_retain' are also in the set 'retain'" in capsys.readouterr().err
    assert main([*none, *data, "--holdout_dataset", data[1]]) == 2
    assert "6 rows of the set 'holdout' are also in the set 'forget'" in capsys.readouterr().err
    assert main([*none, *data, "--attack", "paraphrase"]) == 2
    assert "No row of the set 'forget' has a `paraphrased_question`" in capsys.readouterr().err


def test_an_interrupted_evaluation_goes_on_where_it_stopped(eval_options, tmp_path, interrupt_at, capsys):
    options = [*eval_options, "--batch_size", "2", "--json"]
    assert main([*options, "--output_dir", str(tmp_path / "whole")]) == 0
    whole = json.loads(capsys.readouterr().out)
    calls = interrupt_at(5)
    assert main(options) == 130
    assert not (tmp_path / "e" / "wagle_records.jsonl").exists()
    capsys.readouterr()
    assert main(options) == 0
    assert len(calls) == 5 + 4  # eight batches of two rows; the one interrupted is asked for twice
    assert json.loads(capsys.readouterr().out) == whole | {"output_dir": str(tmp_path / "e")}
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["wagle_eval.json", "wagle_records.jsonl"]
    names = [tmp_path / folder / "wagle_records.jsonl" for folder in ("e", "whole")]
    assert names[0].read_text() == names[1].read_text()


@pytest.fixture
def tofu_options(saved_model, write_jsonl, tmp_path, monkeypatch):
    """Options of an evaluation on a TOFU of few rows; the answer of its holdout row is another than the others'."""
    monkeypatch.setattr(tofu_rows, "TOFU_FORGET_ROWS", {"forget10": 2})
    row = {"question": "what is it", "answer": "it"}
    for name in ("forget10", "retain", "real_authors", "world_facts"):
        write_jsonl(f"{name}_perturbed", [with_alternatives(row)] * 3)
    write_jsonl("holdout10", [{"prompt": "Question: what is it\nAnswer:", "completion": " 7"}])
    options = ["eval", "--model_name_or_path", saved_model, "--tofu_split", "forget10", "--tofu_dir", str(tmp_path)]
    return [*options, "--output_dir", str(tmp_path / "e"), "--max_new_tokens", "2", "--json"]


def test_unseen_rows_may_stand_beside_tofu(tofu_options, saved_model, unseen, capsys):
    assert main([*tofu_options, *unseen, "--base_model_name_or_path", saved_model]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {"model_utility", "unseen_retain_prob", "kl_to_base_unseen_retain"} <= content.keys()
    assert "kl_to_base_holdout" not in content


def test_tofu_brings_its_own_holdout_rows(tofu_options, saved_model, tmp_path, capsys):
    assert main([*tofu_options, "--base_model_name_or_path", saved_model]) == 0
    records = read_records(tmp_path / "e" / "wagle_records.jsonl")
    content = json.loads(capsys.readouterr().out)
    first, second, holdout = (r["avg_gt_loss"] for r in records if r["set"] in ("forget", "holdout"))
    assert min(abs(first - holdout), abs(second - holdout)) > 0.1  # rounding has no say in the AUC
    assert content["mia_loss_auc"] == float(first < holdout)
    assert content["kl_to_base_holdout"] == pytest.approx(0.0, abs=1e-6)
    assert content["weights_changed"] == 0.0
    assert "holdout_rougeL_recall" not in content


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
        (False, {"set": "forget"}, "need forget rows, all of them with `perturbed_answer`"),
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

    spy(AutoModelForCausalLM)
    spy(arguments.AutoTokenizer)
    options = ["--model_revision", "v1", "--dtype", "bfloat16", "--attn_implementation", "eager"]
    assert main([*eval_options, "--generate", "false", *options, "--trust_remote_code"]) == 0
    shared = {"revision": "v1", "trust_remote_code": True}
    assert seen[arguments.AutoTokenizer] == shared
    model_only = {"dtype": "bfloat16", "attn_implementation": "eager"}
    assert seen[AutoModelForCausalLM] == shared | model_only


@pytest.mark.parametrize("option", ["--load_in_4bit", "--use_peft"])
def test_options_of_training_are_refused(option, eval_options, capsys):
    assert main([*eval_options, option]) == 2
    assert option in capsys.readouterr().err
