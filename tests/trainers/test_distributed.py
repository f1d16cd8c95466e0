"""Two processes on one machine, over gloo."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

SCRIPT = """
import json
import sys
import torch
from datasets import load_from_disk
from safetensors.torch import save_model
from transformers import AutoTokenizer, LlamaForCausalLM
from wagle_trl import MaskConfig
from wagle_trl.objectives.names import OBJECTIVES

folder, name, masked, checkpoint = sys.argv[1], sys.argv[2], sys.argv[3] == "masked", sys.argv[6:]
objective, options = OBJECTIVES[sys.argv[4]], json.loads(sys.argv[5])
torch.set_num_threads(1)
args = objective.config_class(
    output_dir=f"{folder}/{name}", use_cpu=True, ddp_backend="gloo", max_steps=5, learning_rate=1e-3,
    adam_epsilon=1e-3, weight_decay=0.1, max_grad_norm=0.5, per_device_train_batch_size=1,
    gradient_accumulation_steps=2, logging_steps=1, save_strategy="steps", save_steps=1, report_to="none",
    gradient_checkpointing=False, bf16=False, disable_tqdm=True, dataloader_pin_memory=False, **options,
)
trainer = objective(
    LlamaForCausalLM.from_pretrained(f"{folder}/model"), args,
    train_dataset=load_from_disk(f"{folder}/forget"), retain_dataset=load_from_disk(f"{folder}/retain"),
    processing_class=AutoTokenizer.from_pretrained(f"{folder}/model"),
    mask_config=MaskConfig(mask_density=0.3) if masked else None,
)
trainer.train(*checkpoint)
rank = trainer.args.process_index
save_model(trainer.model, f"{folder}/{name}-{rank}.safetensors")
with open(f"{folder}/{name}-{rank}.json", "w") as file:
    json.dump(trainer.state.log_history, file)
"""

# Of one process that takes the steps of the script's two
OF_ONE_PROCESS = dict(
    max_steps=5,
    lr_scheduler_type="constant_with_warmup",
    adam_epsilon=1e-3,
    max_grad_norm=0.5,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def run_two(tiny_model, tiny_tokenizer, forget_rows, retain_rows, tmp_path):
    """`run_two(name, "masked" | "dense", [checkpoint], objective="npo", **options)`: what both ranks saved."""
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    forget_rows.save_to_disk(tmp_path / "forget")
    retain_rows.save_to_disk(tmp_path / "retain")
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(name: str, kind: str, *checkpoint: str, objective: str = "npo", **options) -> list[dict]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [*launcher, str(tmp_path / "script.py"), str(tmp_path), name, kind, objective]
        command += [json.dumps(options), *checkpoint]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        saved = [tmp_path / f"{name}-{rank}" for rank in range(2)]
        return [
            {
                "weights": load_file(path.with_suffix(".safetensors")),
                "log": json.loads(path.with_suffix(".json").read_text()),
            }
            for path in saved
        ]

    return run


@pytest.mark.parametrize("kind", ["masked", "dense"])
def test_two_processes_equal_one_of_twice_the_batch_and_resume(kind, run_two, make_trainer, tmp_path):
    from wagle_trl import MaskConfig

    first, second = run_two("whole", kind)
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    single = make_trainer(
        model=LlamaForCausalLM.from_pretrained(tmp_path / "model"),
        mask_config=MaskConfig(mask_density=0.3) if kind == "masked" else None,
        **OF_ONE_PROCESS,
    )
    single.train()
    differences = [(value - first["weights"][name]).abs().max() for name, value in single.model.state_dict().items()]
    print("largest difference", float(max(differences)))
    assert max(differences) < 1e-5  # of steps of 1e-3
    assert first["log"][0] == second["log"][0] and first["log"][0]["forget_probability"] > 0
    losses = [[entry for entry in log if "loss" in entry] for log in (first["log"], single.state.log_history)]
    assert len(losses[0]) == 5
    for ours, theirs in zip(*losses, strict=True):
        for key in ("loss", "grad_norm"):
            assert float(ours[key]) == pytest.approx(float(theirs[key]), rel=1e-3), key

    # checkpoint-1 is in the middle of the first epoch (3 micro-batches a process, 2 to a step), checkpoint-3 of the next
    for step in (1, 3):
        resumed, _ = run_two("again", kind, str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert all(torch.equal(value, resumed["weights"][name]) for name, value in first["weights"].items())


@pytest.mark.parametrize(
    "objective, options",
    [
        ("undial", {"retain_loss": "kl", "reference_states": "swap"}),
        ("undial", {"retain_loss": "kl", "reference_states": "stored"}),
        ("pdu", {"retain_weight": 1.0}),
    ],
    ids=["swapped", "stored", "pdu"],
)
def test_reference_and_dual_variable_of_two_processes_are_those_of_one(
    objective, options, run_two, make_trainer, tmp_path
):
    from wagle_trl import MaskConfig

    first, second = run_two("whole", "masked", objective=objective, **options)
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    single = make_trainer(
        objective,
        LlamaForCausalLM.from_pretrained(tmp_path / "model"),
        mask_config=MaskConfig(mask_density=0.3),
        **OF_ONE_PROCESS,
        **options,
    )
    single.train()
    logs = [
        [entry for entry in log if "retain_loss" in entry]
        for log in (first["log"], second["log"], single.state.log_history)
    ]
    assert len(logs[0]) == 5 and [e.get("dual") for e in logs[0]] == [e.get("dual") for e in logs[1]]
    for ours, theirs in zip(logs[0], logs[2], strict=True):
        for key in {"forget_loss", "retain_loss", "dual"} & theirs.keys():
            assert float(ours[key]) == pytest.approx(float(theirs[key]), rel=1e-3, abs=1e-5), key
