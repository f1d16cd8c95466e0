import io
import json
from contextlib import redirect_stdout

import pytest

from wagle_trl import WeightMask
from wagle_trl.cli.main import main
from wagle_trl.demo import run as demo

KEYS = {
    "run",
    "forget_probability",
    "retain_probability",
    "unseen_retain_probability",
    "weights_changed",
    "optimizer_bytes",
    "seconds",
}


@pytest.fixture(scope="module")
def short_demo(tmp_path_factory):
    """Folder and output of the demo with next to no training, run once: no test may change the folder."""
    folder, learn, people = tmp_path_factory.mktemp("demo") / "demo-output", demo.train, demo.people_rows
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr(demo, "STEPS", 2)
        patch.setattr(demo, "train", lambda *args, **kwargs: learn(*args, **kwargs, epochs=1))
        patch.setattr(demo, "people_rows", lambda seed: people(30, seed))
        assert main(["demo", "--output_dir", str(folder)]) == 0
    return folder, out.getvalue()


def test_the_demo_writes_its_folder_and_one_row_a_run(short_demo):
    folder, out = short_demo
    rows = json.loads((folder / "report.json").read_text())
    assert [row["run"] for row in rows] == ["base", "oracle", "dense", "random", "masked"]
    assert all(set(row) >= KEYS for row in rows)
    by_run = {row["run"]: row for row in rows}
    assert by_run["base"]["weights_changed"] == 0
    mask = WeightMask.load(folder)
    assert 0 < by_run["masked"]["weights_changed"] <= mask.density
    assert by_run["masked"]["optimizer_bytes"] < 0.06 * by_run["dense"]["optimizer_bytes"]
    for name in ("model.safetensors", "wagle_mask.png", "wagle_report.json", "base/model.safetensors", "forget.jsonl"):
        assert (folder / name).stat().st_size > 0
    assert "unseen retain" in out


def test_the_demo_model_loads_with_plain_transformers(short_demo):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = short_demo
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model(**tokenizer("Question:", return_tensors="pt")).logits.isfinite().all()


@pytest.mark.slow
def test_the_masked_run_of_the_demo_really_unlearns(tmp_path):
    rows, _ = demo.run_demo(tmp_path)
    by_run = {row["run"]: row for row in rows}
    assert by_run["base"]["forget_probability"] > 0.9
    assert by_run["masked"]["forget_probability"] <= 0.2
    assert by_run["masked"]["retain_probability"] >= 0.8
