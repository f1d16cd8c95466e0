"""What a whole checkpoint costs: how long training waits, how long until it is whole and on the disk, and fsync's part.

Seconds for a Llama of 61 M bf16 weights, NPO with a mask of 5 %, and dense. Several threads may be in fsync at once; nothing
else runs meanwhile. With `--before CHECKOUT`, the same of another checkout of this repository, in turn with this one, each in
a process of its own; the first save of each process is not counted.

    python -m benchmarks saving --before ../before
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.environment import checkouts_beside, variables_of, write_result

RESULT = Path(__file__).parent / "results" / "saving.json"

# Runs in either checkout, so it knows nothing but what both have
_MEASURE = """
import json, os, sys, tempfile, time
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from wagle_trl import MaskConfig, NPOConfig, NPOTrainer

torch.manual_seed(0)
config = LlamaConfig(vocab_size=16000, hidden_size=512, intermediate_size=1408, num_hidden_layers=14,
    num_attention_heads=8, num_key_value_heads=8)
model = LlamaForCausalLM(config).bfloat16()
words = models.WordLevel({f"t{i}": i for i in range(16000)}, "t1")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="t0", unk_token="t1", eos_token="t2")
rows = [Dataset.from_list([{"input_ids": [seed, 5, 6, 7], "labels": [-100, 5, 6, 7]}]) for seed in (3, 4)]
in_sync, sync = [0.0], os.fsync

def timed_sync(descriptor):
    begin = time.perf_counter()
    sync(descriptor)
    in_sync[0] += time.perf_counter() - begin

os.fsync = timed_sync
with tempfile.TemporaryDirectory(dir=sys.argv[2]) as folder:
    args = NPOConfig(folder, max_steps=1, report_to="none", save_strategy="no", disable_tqdm=True, trajectory_steps=0,
        per_device_train_batch_size=1, gradient_checkpointing=False, save_total_limit=1)
    mask = {"mask_config": MaskConfig("random", 0.05)} if sys.argv[1] == "masked" else {}
    trainer = NPOTrainer(model, args, train_dataset=rows[0], retain_dataset=rows[1], processing_class=tokenizer, **mask)
    trainer.train()
    finish = getattr(trainer, "finish_saves", lambda: None)
    found = []
    for step in range(1, int(sys.argv[3]) + 2):
        trainer.state.global_step, in_sync[0] = step, 0.0
        begin = time.perf_counter()
        trainer._save_checkpoint(trainer.model, None)
        trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
        waited = time.perf_counter() - begin
        finish()
        whole = time.perf_counter() - begin
        found.append({"seconds": waited, "whole_seconds": whole, "fsync_seconds": in_sync[0]})
    size = sum(path.stat().st_size for path in __import__("pathlib").Path(folder, f"checkpoint-{step}").iterdir())
print(json.dumps({"bytes": size, "saves": found[1:]}))
"""


def measure(checkout: Path, kind: str, folder: Path, saves: int) -> dict[str, Any]:
    """Saves of one process that runs the code of a checkout."""
    command = [sys.executable, "-c", _MEASURE, kind, str(folder), str(saves)]
    done = subprocess.run(command, cwd=folder, env=variables_of(checkout), check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where to save: on the disk to measure")
    parser.add_argument("--rounds", type=int, default=5, help="processes per case")
    parser.add_argument("--saves", type=int, default=5, help="saves per process")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    checkouts = checkouts_beside(args.before)
    cases = {(kind, name): [] for kind in ("masked", "dense") for name in checkouts}
    sizes = {}
    for _ in range(args.rounds):
        for kind, name in cases:
            result = measure(checkouts[name], kind, args.folder, args.saves)
            cases[kind, name] += result["saves"]
            sizes[kind] = result["bytes"]
    rows = [
        {"training": kind, "checkout": name, "bytes": sizes[kind]}
        | {
            key: statistics.median(save[key] for save in saves)
            for key in ("seconds", "whole_seconds", "fsync_seconds")
        }
        for (kind, name), saves in cases.items()
    ]
    medians = {(row["training"], row["checkout"]): row["seconds"] for row in rows}
    if args.before:
        for row in rows:
            row["of_before"] = medians[row["training"], row["checkout"]] / medians[row["training"], "before"]
    raw = [{"training": kind, "checkout": name, "saves": saves} for (kind, name), saves in cases.items()]
    write_result(args.output, {"median": rows, "raw": raw})
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
