import io
import json
import shlex
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest

from wagle_trl import WeightMask
from wagle_trl.cli.main import main
from wagle_trl.demo import run as demo
from wagle_trl.demo import stages as stages_module
from wagle_trl.demo.worlds import WORLDS

KEYS = {
    "world",
    "run",
    "learning_rate",
    "retain_weight",
    "steps",
    "forget_before",
    "forget_probability",
    "retain_probability",
    "unseen_retain_probability",
    "unseen_retain_at_depth",
    "forget_rougeL",
    "optimizer_bytes",
    "delta_bytes",
    "verified",
}


@pytest.fixture(scope="module")
def short_demo(tmp_path_factory):
    """Folder, output and stages of the demo with next to no training, run once: no test may change the folder."""
    folder, learn = tmp_path_factory.mktemp("demo") / "demo output", demo.train
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(demo, "MAX_STEPS", 2)
        patch.setattr(demo, "NUM_PEOPLE", 30)
        patch.setattr(demo, "train", lambda *args, **options: learn(*args, **options | {"epochs": 1}))
        assert main(["demo", "--output_dir", str(folder)]) == 0
    return folder, out.getvalue(), err.getvalue()


def test_the_demo_writes_a_run_per_world_and_arm(short_demo):
    folder, _, _ = short_demo
    rows = {(row["world"], row["run"]): row for row in json.loads((folder / "report.json").read_text())}
    assert list(rows) == [(name, arm) for name, world in WORLDS.items() for arm in world.arms]
    for (world, arm), row in rows.items():
        assert set(row) >= KEYS
        has_mask = WORLDS[world].arms[arm].mask is not None
        assert row["verified"] is (True if has_mask else None) and (row["delta_bytes"] is not None) is has_mask
    assert rows["people", "masked"]["optimizer_bytes"] < 0.06 * rows["people", "dense"]["optimizer_bytes"]
    for world in WORLDS:
        for name in ("base/model.safetensors", "curves.png", "trade_off.png", "forget.jsonl", "masked/wagle_mask.png"):
            assert (folder / world / name).stat().st_size > 0
        assert WeightMask.load(folder / world / "masked").num_selected > 0


def test_every_arm_has_options_of_its_own():
    for world in WORLDS.values():
        assert list(world.arms) == ["dense", "random", "masked"]


def test_the_screen_says_what_was_kept_at_the_same_depth_and_what_the_mask_buys_and_does_not(short_demo):
    _, out, _ = short_demo
    for text in ("unseen at 0.1", "optimizer state", "bit-identical", "At the same depth of forgetting", "before:"):
        assert text in out, text
    assert len(out.splitlines()) < 60


def test_stages_are_announced_with_the_time_left(short_demo):
    _, _, err = short_demo
    lines = [line for line in err.splitlines() if " left)" in line]
    assert [line.split()[:3] for line in lines] == [[str(place), "of", "8"] for place in range(1, 9)]


def test_the_time_left_follows_the_speed_of_the_stages_before(monkeypatch, capsys):
    now = iter([0.0, 20.0])  # the first stage takes twice the seconds that it was to take
    monkeypatch.setattr(stages_module, "time", SimpleNamespace(monotonic=lambda: next(now)))
    stages = stages_module.Stages({"a": 10, "b": 30, "c": 15})
    stages.begin("a", "first")
    stages.begin("b", "second")
    assert capsys.readouterr().err.splitlines() == [
        "1 of 3  first (about 0:55 left)",
        "2 of 3  second (about 1:30 left)",
    ]


def test_the_runs_of_the_demo_can_be_compared(short_demo, tmp_path):
    _, out, _ = short_demo
    command = shlex.split(next(line for line in out.splitlines() if line.startswith("wagle report")))
    assert main([*command[1:], "--output_dir", str(tmp_path / "report")]) == 0


def test_a_model_of_the_demo_loads_with_plain_transformers(short_demo):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _, _ = short_demo
    tokenizer = AutoTokenizer.from_pretrained(folder / "people" / "masked")
    model = AutoModelForCausalLM.from_pretrained(folder / "people" / "masked")
    assert model(**tokenizer("Question:", return_tensors="pt")).logits.isfinite().all()


@pytest.mark.slow
def test_the_closing_command_forgets(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "NUM_PEOPLE", 30)
    monkeypatch.setattr(demo, "MAX_STEPS", 1)
    people = WORLDS["people"]
    monkeypatch.setitem(WORLDS, "people", people)
    monkeypatch.delitem(WORLDS, "records")
    assert main(["demo", "--output_dir", str(tmp_path / "demo")]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:2] == ["wagle", "npo"]
    assert main([*command[1:], "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "done at step" in result["verdict"]
    assert result["forget_probability"] <= 0.1 and result["retain_probability"] > 0.9
    assert result["unseen_retain_probability"] > 0.5  # three of thirty people; with the sixty of the demo it is more


@pytest.mark.slow
def test_every_run_of_the_demo_unlearns(tmp_path):
    for forgetting in demo.run_demo(tmp_path):
        numbers = forgetting.numbers()
        assert numbers["forget_before"] > 0.95 and numbers["forget_probability"] <= 0.1
        assert numbers["unseen_retain_probability"] >= 0.8
