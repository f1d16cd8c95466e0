"""Every command that writes, on models of a few thousand weights, and what it may leave when it is broken off."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from wagle_trl import SparseDelta
from wagle_trl.cli.main import main
from wagle_trl.deltas.delta import weights_fingerprint
from wagle_trl.files.manifest import Manifest

from ..conftest import PEOPLE, make_rows
from .deltas import unlearned

_DATA = "--forget_dataset {inputs}/forget.jsonl --retain_dataset {inputs}/retain.jsonl"
_OUT = "--output_dir {disk}/out"
_TRAIN = (
    f"--model_name_or_path {{inputs}}/base {_DATA} {_OUT} --max_steps 2 --save_strategy steps --save_steps 1 "
    "--per_device_train_batch_size 2 --gradient_checkpointing false --report_to none --logging_steps 1"
)
_UNLEARN = f"{_TRAIN} --trajectory_steps 0"
_EVAL = f"{_DATA} {_OUT} --max_new_tokens 1 --batch_size 4 --attack quantize --model_name_or_path {{inputs}}"


@dataclass
class Writer:
    """
    A command line that writes to a disk.

    Args:
        line (`str`): Arguments, with `{inputs}` and `{disk}`.
        other (`str`, *optional*): Another one that writes to the same place; `None` where nothing is overwritten.
        starts_from (`str`, *optional*): Folder of the inputs that it changes.
    """

    line: str
    other: str | None = None
    starts_from: str | None = None


WRITERS = {
    "npo": Writer(
        f"npo {_UNLEARN} --save_total_limit 1 --mask_score random --save_delta",
        f"npo {_UNLEARN} --save_total_limit 1 --mask_score random --save_delta --seed 7 --retain_weight 2",
    ),
    "graddiff": Writer(f"graddiff {_UNLEARN} --mask none"),
    "sft": Writer(f"sft {_TRAIN} --use_peft --lora_r 2"),
    "mask": Writer(
        f"mask {_UNLEARN} --mask_score gradient", f"mask {_UNLEARN} --mask_score random --mask_density 0.5"
    ),
    "eval": Writer(f"eval {_EVAL}/run-0", f"eval {_EVAL}/run-1"),
    "alternates": Writer(
        f"alternates --model_name_or_path {{inputs}}/base --forget_dataset {{inputs}}/forget.jsonl {_OUT} --max_new_tokens 2 "
        "--num_alternates 1"
    ),
    "report": Writer(f"report {{inputs}}/run-0 {_OUT}", f"report {{inputs}}/trained {{inputs}}/run-0 {_OUT}"),
    "delta": Writer(
        f"delta {{inputs}}/base {{inputs}}/run-0 --undo {_OUT}", f"delta {{inputs}}/base {{inputs}}/run-1 {_OUT}"
    ),
    "apply": Writer(f"apply {{inputs}}/run-0 {{inputs}}/base {_OUT}"),
    "undo": Writer(f"undo {{inputs}}/run-0 {{inputs}}/run-0 {_OUT}"),
    "merge": Writer(f"merge {{inputs}}/run-0 {{inputs}}/run-1 {_OUT}"),
    "adapter": Writer(f"adapter {{inputs}}/run-0 {{inputs}}/base {_OUT}"),
    "card": Writer("card {disk}/trained --license mit", starts_from="trained"),
    "plan": Writer(
        "plan --model_name_or_path {inputs}/base --gpu 24GB --max_length 64 --mask none --auto {disk}/plan.yaml"
    ),
}
TRAINERS = ("npo", "graddiff", "sft")
NEW_FOLDERS = ("apply", "undo", "merge", "adapter")  # what they make is one folder, that must be new


def make_inputs(folder: Path, base, tokenizer) -> None:
    """Rows, a model in bf16, two that were unlearned from it, with deltas, one of them evaluated, and a run of `npo`."""
    for name, people in {"forget": PEOPLE[:6], "retain": PEOPLE[6:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(people)))
    for saved in (base.to(torch.bfloat16), tokenizer):
        saved.save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")
    for seed in range(2):
        run = folder / f"run-{seed}"
        model, mask = unlearned(base, 0.2, seed)
        mask.info = replace(mask.info, base_model=str(folder / "base"))
        SparseDelta.from_model(model, mask, weights_fingerprint(base), base).save(run)
        for save in (model.save_pretrained, tokenizer.save_pretrained, mask.save):
            save(run)
    places = {"eval": folder / "run-0", "npo": folder / "trained"}
    for command, place in places.items():
        succeed([*arguments(WRITERS[command].line, folder, folder), "--output_dir", str(place)])


def arguments(line: str, inputs: Path, disk: Path) -> list[str]:
    return line.format(inputs=inputs, disk=disk).split()


def call(argv: list[str]) -> tuple[int, list[str], str]:
    """The exit code of a command, its lines on stderr that are no progress bars, and all that it wrote there."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as err:
        code = main(argv)
    text = err.getvalue()
    return code, [line for line in text.splitlines() if line.startswith(f"wagle {argv[0]}: ")], text


def succeed(argv: list[str]) -> None:
    code, _, err = call(argv)
    assert code == 0, err


def contents(folder: Path) -> dict[str, bytes]:
    """The files in a folder, and in those within."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_what_is_left(disk: Path, before: dict[str, bytes], command: str) -> None:
    """What was there is there, or as new as all that belongs to it; nothing is half there, or hidden."""
    left = contents(disk)
    hidden = [name for name in left if any(part.startswith(".") for part in Path(name).parts)]
    assert not hidden, hidden
    for folder in {(disk / name).parent for name in left}:
        manifest = Manifest.read(folder)
        assert manifest is None or not manifest.changed(folder)
        assert manifest or not folder.name.startswith("checkpoint-")
        if manifest is None and command in TRAINERS:  # the mask, which takes longest, is there as soon as it is known
            assert not (folder / "model.safetensors").exists() and not (folder / "adapter_model.safetensors").exists()
    changed = {name for name, content in before.items() if left.get(name) != content}
    if command == "eval":  # the results of an attack come later
        assert len({f"out/wagle_{name}" in changed for name in ("eval.json", "records.jsonl")}) == 1
    elif command in (*TRAINERS, "card"):  # whole by their manifests, as was seen above
        assert not any(name in changed for name in before if "/" not in name)
    else:
        assert not changed
