import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM
from trl import ModelConfig

from wagle_trl import MaskConfig, MaskedDPOConfig, MaskedSFTConfig, NPOConfig, WeightMask

SCRIPTS = Path(__file__).resolve().parents[1] / "examples" / "scripts"
SCRIPT = SCRIPTS / "sft_to_npo.py"
TWO_STEPS = {
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "max_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
}


def command_line(options: dict) -> list[str]:
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def write_rows(folder: Path, rows) -> None:
    """A folder of JSON lines."""
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_script(script: Path, arguments: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr


@pytest.fixture
def run_here(tmp_path, monkeypatch):
    """`run_here(script, arguments)`: as `run_script`, in this process, which has imported what a script imports."""

    def run(script: Path, arguments: list[str]) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        runpy.run_path(str(script), run_name="__main__")

    return run


def assert_only_selected_moved(folder: Path, base: dict) -> WeightMask:
    """What is saved differs from the base in the weights of its mask alone, and in nearly all of these."""
    mask = WeightMask.load(folder)
    for name, parameter in LlamaForCausalLM.from_pretrained(folder).named_parameters():
        selected = mask.dense(name) if name in mask.bits else torch.zeros_like(parameter, dtype=torch.bool)
        assert torch.equal(parameter[~selected], base[name][~selected]), name
        assert (parameter != base[name]).sum() >= 0.95 * selected.sum()
    return mask


@pytest.fixture
def base(tiny_model, tiny_tokenizer, tmp_path) -> dict:
    """Weights of a tiny model, saved as `model`."""
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return dict(tiny_model().named_parameters())


@pytest.fixture
def arguments(base, forget_rows, retain_rows, tmp_path) -> list[str]:
    """Command line of a two-step run on a tiny model and local folders of JSON lines."""
    write_rows(tmp_path / "forget", forget_rows)
    write_rows(tmp_path / "retain", retain_rows)
    options = {
        "model_name_or_path": tmp_path / "model",
        "dataset_name": tmp_path / "forget",
        "retain_dataset": tmp_path / "retain",
        "output_dir": tmp_path / "out",
    }
    return command_line(options | TWO_STEPS)


def test_the_npo_script_unlearns(arguments, base, tmp_path):
    run_script(SCRIPT, arguments, tmp_path)
    report = json.loads((tmp_path / "out" / "wagle_report.json").read_text())
    assert report["objective"] == "NPO"
    first = next(entry for entry in report["log_history"] if "forget_loss" in entry)
    assert first["forget_loss"] == pytest.approx(13.8629, abs=1e-3)
    assert_only_selected_moved(tmp_path / "out", base)


def test_the_npo_script_unlearns_in_adapters(arguments, tmp_path, tiny_model, run_here):
    peft = ["--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]
    run_here(SCRIPT, [*arguments, *peft])
    model = PeftModel.from_pretrained(tiny_model(), tmp_path / "out")
    assert any(bool(p.abs().sum() > 0) for name, p in model.named_parameters() if "lora_B" in name)


def test_the_sft_script_trains_the_weights_of_a_mask(arguments, base, tmp_path, run_here):
    options = {"mask_score": "wagle", "mask_density": 0.1, "forget_dataset": tmp_path / "forget"}
    run_here(SCRIPTS / "sft_masked.py", [*arguments, *command_line(options)])
    mask = assert_only_selected_moved(tmp_path / "out", base)
    assert mask.info.score == "wagle" and mask.density == pytest.approx(0.1, abs=1e-3)
    assert json.loads((tmp_path / "out" / "wagle_report.json").read_text())["objective"] == "Masked SFT"


def test_the_dpo_script_trains_the_weights_of_a_mask(base, forget_rows, tmp_path, run_here):
    rejected = [*forget_rows["completion"][1:], forget_rows["completion"][0]]
    preferences = forget_rows.rename_column("completion", "chosen").add_column("rejected", rejected)
    write_rows(tmp_path / "preferences", preferences)
    options = {
        "model_name_or_path": tmp_path / "model",
        "dtype": "float32",
        "dataset_name": tmp_path / "preferences",
        "output_dir": tmp_path / "out",
        "mask_score": "random",
        "mask_density": 0.1,
    }
    run_here(SCRIPTS / "dpo_masked.py", command_line(options | TWO_STEPS))
    mask = assert_only_selected_moved(tmp_path / "out", base)
    assert mask.density == pytest.approx(0.1, abs=1e-3) and mask.num_selected > 0
    report = json.loads((tmp_path / "out" / "wagle_report.json").read_text())
    first = next(entry for entry in report["log_history"] if "loss" in entry)
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)  # of a policy that is its own reference


@pytest.mark.parametrize(
    ("script", "trainer", "config"),
    [
        ("sft_masked.py", "MaskedSFTTrainer", MaskedSFTConfig),
        ("dpo_masked.py", "MaskedDPOTrainer", MaskedDPOConfig),
        ("sft_to_npo.py", "NPOTrainer", NPOConfig),
    ],
)
def test_a_script_takes_a_saved_mask_or_rows_to_compute_one(
    script, trainer, config, forget_rows, tmp_path, monkeypatch
):
    main = runpy.run_path(str(SCRIPTS / script))["main"]
    given = {}
    monkeypatch.setitem(main.__globals__, trainer, lambda **arguments: given.update(arguments) or Mock())
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_rows(tmp_path / "rows", forget_rows)
    script_arguments = main.__annotations__["script_args"]
    rows = {name: str(tmp_path / "rows") for name in ("dataset_name", "forget_dataset", "retain_dataset")}
    rows = {name: path for name, path in rows.items() if name in script_arguments.__dataclass_fields__}
    training, mask_config = config(str(tmp_path / "out"), report_to="none", bf16=False), MaskConfig()
    main(script_arguments(**rows), training, ModelConfig("model"), mask_config)
    assert given["mask_config"] is mask_config and given["mask"] is None
    assert {len(given[name]) for name in given if name.endswith("dataset") and given[name]} == {len(forget_rows)}
    assert "forget_dataset" not in rows or given["forget_dataset"] is not None
    main(script_arguments(mask="my-mask", **rows), training, ModelConfig("model"), mask_config)
    assert given["mask"] == "my-mask" and given["mask_config"] is None
