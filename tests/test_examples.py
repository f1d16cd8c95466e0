import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from wagle_trl import WeightMask

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "scripts" / "sft_to_npo.py"


@pytest.fixture
def arguments(tiny_model, tiny_tokenizer, forget_rows, retain_rows, tmp_path) -> list[str]:
    """Command line of a two-step run on a tiny model and local folders of JSON lines."""
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    for name, rows in (("forget", forget_rows), ("retain", retain_rows)):
        (tmp_path / name).mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "train.jsonl").write_text(lines)
    options = {
        "model_name_or_path": tmp_path / "model",
        "dataset_name": tmp_path / "forget",
        "retain_dataset_name": tmp_path / "retain",
        "output_dir": tmp_path / "out",
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
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def test_an_sft_script_unlearns_with_another_trainer_and_retain_rows(arguments, tmp_path, tiny_model):
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "out" / "wagle_report.json").read_text())
    assert report["objective"] == "NPO"
    first = next(entry for entry in report["log_history"] if "forget_loss" in entry)
    assert first["forget_loss"] == pytest.approx(13.8629, abs=1e-3)
    mask = WeightMask.load(tmp_path / "out")
    base = dict(tiny_model().named_parameters())
    for name, parameter in LlamaForCausalLM.from_pretrained(tmp_path / "out").named_parameters():
        selected = mask.dense(name) if name in mask.bits else torch.zeros_like(parameter, dtype=torch.bool)
        assert torch.equal(parameter[~selected], base[name][~selected]), name
        assert (parameter != base[name]).sum() >= 0.95 * selected.sum()


def test_the_script_unlearns_in_adapters(arguments, tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    peft = ["--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, *peft])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    model = PeftModel.from_pretrained(tiny_model(), tmp_path / "out")
    assert any(bool(p.abs().sum() > 0) for name, p in model.named_parameters() if "lora_B" in name)
