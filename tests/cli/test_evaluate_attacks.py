"""`wagle eval --attack`."""

import json

import pytest
import torch

from wagle_trl.cli import evaluate
from wagle_trl.cli.main import main
from wagle_trl.evaluation.tofu import read_records


@pytest.fixture
def attacked(saved_model, forget_rows, retain_rows, write_jsonl, tmp_path):
    """Options of an evaluation whose forget rows have paraphrases."""
    forget = [row | {"paraphrased_question": f"{row['prompt'][:-8]} now?\nAnswer:"} for row in forget_rows]
    rows = ["--forget_dataset", write_jsonl("forget", forget)]
    rows += ["--retain_dataset", write_jsonl("retain", retain_rows.to_list())]
    options = ["eval", "--model_name_or_path", saved_model, *rows, "--output_dir", str(tmp_path / "e")]
    return [*options, "--generate", "false", "--relearn_steps", "6", "--relearn_learning_rate", "1e-2"]


def test_attacks_stand_beside_the_clean_numbers(attacked, tmp_path, capsys):
    assert main([*attacked, "--json"]) == 0
    clean = json.loads(capsys.readouterr().out)
    assert main([*attacked, "--attack", "relearn", "quantize", "paraphrase", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    attacks = content.pop("attacks")
    assert content == clean
    assert list(attacks) == ["relearn", "quantize_int8", "quantize_int4", "paraphrase"]
    assert len({values["forget_prob"] for values in (clean, *attacks.values())}) == 5
    curve = attacks["relearn"]["curve"]
    assert [point["step"] for point in curve] == [0, 5, 6]
    assert curve[-1]["forget_probability"] == pytest.approx(attacks["relearn"]["forget_prob"], rel=1e-4)
    assert curve[-1]["forget_probability"] > curve[0]["forget_probability"]
    written = json.loads((tmp_path / "e" / "wagle_eval.json").read_text())
    assert written["attacks"] == attacks
    assert written["options"]["relearn_steps"] == 6
    assert written["options"]["attack"] == ["relearn", "quantize", "paraphrase"]
    for name, values in attacks.items():
        folder = tmp_path / "e" / "attacks" / name
        assert [path.name for path in folder.iterdir()] == ["wagle_records.jsonl"]
        assert len(read_records(folder / "wagle_records.jsonl")) == sum(values["rows"].values())


def test_only_the_attacks_that_were_asked_for_are_made_and_shown(attacked, capsys):
    assert main([*attacked, "--attack", "quantize"]) == 0
    shown = capsys.readouterr().out
    assert "clean" in shown and "int8 (nearest)" in shown and "int4 (nearest)" in shown
    assert "relearn" not in shown.lower() and "paraphrase" not in shown


def test_the_curve_of_relearning_is_shown(attacked, capsys):
    assert main([*attacked, "--attack", "relearn", "--relearn_share", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert "steps on 3 forget rows" in shown and "forget_prob of the other 3" in shown
    assert "After relearning, the forget rows are those that relearning did not train on." in " ".join(shown.split())


def test_interrupted_attacks_go_on_where_they_stopped(attacked, interrupt_at, capsys):
    calls = interrupt_at(4)
    assert main([*attacked, "--attack", "quantize"]) == 130
    assert main([*attacked, "--attack", "quantize"]) == 0
    assert len(calls) == 4 + 3  # two sets without an attack and two under each of two


@pytest.mark.parametrize("done", [[], ["quantize_int8"]], ids=["none", "one"])
def test_an_attack_that_runs_out_of_memory_loses_nothing_that_was_found(done, attacked, tmp_path, monkeypatch, capsys):
    assert main([*attacked, "--json"]) == 0
    clean = json.loads(capsys.readouterr().out)
    attack = evaluate.evaluate_attack

    def run_out_of_memory(model, tokenizer, sets, variant, *others, **options):
        if variant not in done:
            raise torch.OutOfMemoryError("no memory left")
        return attack(model, tokenizer, sets, variant, *others, **options)

    monkeypatch.setattr(evaluate, "evaluate_attack", run_out_of_memory)
    assert main([*attacked, "--attack", "quantize", "--output_dir", str(tmp_path / "f")]) == 2
    assert "no memory left" in capsys.readouterr().err
    written = json.loads((tmp_path / "f" / "wagle_eval.json").read_text())
    assert list(written.get("attacks", {})) == done
    assert ("attack" in written["options"]) is bool(done)
    del clean["output_dir"]
    assert clean.items() <= written.items()
