"""Unlearning real data end to end with a Llama of about 5 M parameters, through the `wagle` command.

The model memorises the last 60 rows of TOFU (three authors, to be forgotten) and the first 720. Rows 0-359 serve
attribution and retain training; rows 360-719 take no part in unlearning, so they show what else was lost. The same
rule picks the learning rate of every arm: of the two smallest of a grid that end with a mean forget probability of 0.2
or below, the one that keeps more of the retain rows it trains on. (The smallest alone often stops halfway: the retain
term mends with more steps what the forget term broke.)

    python -m benchmarks tofu_tiny --tofu_dir PATH/TO/tofu

Finished steps are kept in `--cache`, so an interrupted run goes on where it stopped.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.environment import environment, write_result
from wagle_trl.cli.main import main as wagle
from wagle_trl.data import read_jsonl
from wagle_trl.demo.tiny_model import build_model, build_tokenizer, train
from wagle_trl.evaluation.tofu import write_records

RESULT = Path(__file__).parent / "results" / "tofu_tiny.json"
SETS = ("forget", "retain", "unseen_retain")
TARGET = 0.2
STEPS = 60
# (score, density) of every mask
MASKS = {
    "fisher_ratio-0.05": ("fisher_ratio", 0.05),
    "fisher_ratio-0.95": ("fisher_ratio", 0.95),
    "wagle-0.05": ("wagle", 0.05),
    "wagle-0.95": ("wagle", 0.95),
    "random-0.05": ("random", 0.05),
}
GRID = (5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3)


def prepare(tofu_dir: Path, cache: Path) -> None:
    """Write the row files and train the model that knows them all."""
    rows = read_jsonl(tofu_dir / "full.jsonl")
    splits = {"forget": rows[-60:], "retain": rows[:360], "unseen_retain": rows[360:720]}
    for name, part in splits.items():
        write_records(part, cache / f"{name}.jsonl")
    if (cache / "base" / "environment.json").exists():
        return
    shutil.rmtree(cache / "base", ignore_errors=True)
    everything = [row for part in splits.values() for row in part]
    tokenizer = build_tokenizer([f"{row['question']} {row['answer']}" for row in everything], vocab_size=4096)
    model = build_model(
        tokenizer,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    start = time.perf_counter()
    train(model, tokenizer, everything, epochs=26, learning_rate=1e-3, max_length=256, description="base")
    seconds = time.perf_counter() - start
    model.save_pretrained(cache / "base")
    tokenizer.save_pretrained(cache / "base")
    (cache / "base" / "seconds.json").write_text(json.dumps(seconds))
    stamp(cache / "base")


def stamp(folder: Path) -> None:
    """Note beside a finished step which commit and versions made it: a resumed benchmark may mix several."""
    (folder / "environment.json").write_text(json.dumps(environment()))


def run_wagle(command: str, output_dir: Path, **options) -> None:
    """`wagle command`, unless `output_dir` holds its finished result."""
    if (output_dir / "environment.json").exists():
        return
    shutil.rmtree(output_dir, ignore_errors=True)
    argv = [command, "--output_dir", str(output_dir)]
    for name, value in options.items():
        argv += [f"--{name}", str(value)]
    if (code := wagle(argv)) != 0:
        raise SystemExit(f"wagle {command} exited with {code}")
    stamp(output_dir)


def evaluate(model: Path, cache: Path, output: Path, *, generate: bool) -> dict[str, float]:
    """Summary of `wagle eval` on the three sets."""
    run_wagle(
        "eval",
        output,
        model_name_or_path=model,
        forget_dataset=cache / "forget.jsonl",
        retain_dataset=cache / "retain.jsonl",
        unseen_dataset=cache / "unseen_retain.jsonl",
        batch_size=60,
        max_new_tokens=100,
        generate=generate,
    )
    return json.loads((output / "wagle_eval.json").read_text())


def shared_options(cache: Path) -> dict:
    return {
        "model_name_or_path": cache / "base",
        "forget_dataset": cache / "forget.jsonl",
        "retain_dataset": cache / "retain.jsonl",
        "gradient_checkpointing": False,
        "report_to": "none",
    }


def compute_mask(name: str, cache: Path) -> Path:
    folder, (score, density) = cache / "masks" / name, MASKS[name]
    options = {"mask_score": score, "mask_density": density, "per_device_train_batch_size": 20}
    run_wagle("mask", folder, **shared_options(cache), **options)
    return folder


def unlearn(command: str, mask: str, learning_rate: float, cache: Path) -> Path:
    """Folder of the unlearned model."""
    folder = cache / "runs" / f"{command}-{mask}-{learning_rate:g}"
    run_wagle(
        command,
        folder,
        **shared_options(cache),
        mask="none" if mask == "dense" else compute_mask(mask, cache),
        max_steps=STEPS,
        learning_rate=learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        per_device_train_batch_size=12,
        save_strategy="no",
        logging_steps=10,
        seed=0,
    )
    return folder


def arm(command: str, mask: str, cache: Path) -> dict:
    """The row of an objective and a mask, at the learning rate that the rule picks."""
    tried = []
    for learning_rate in GRID:
        folder = unlearn(command, mask, learning_rate, cache)
        summary = evaluate(folder, cache, folder / "quick", generate=False)
        tried.append({"learning_rate": learning_rate, **{name: summary[f"{name}_prob"] for name in SETS}})
        reached = [run for run in tried if run["forget"] <= TARGET]
        if len(reached) == 2:
            break
    learning_rate = max(reached, key=lambda run: run["retain"], default=tried[-1])["learning_rate"]
    folder = unlearn(command, mask, learning_rate, cache)
    logs = json.loads((folder / "wagle_report.json").read_text())["log_history"]
    moved = [entry["selected_moved"] for entry in logs if "selected_moved" in entry]
    return row(f"{command} {mask}", evaluate(folder, cache, folder / "full", generate=True)) | {
        "learning_rate": learning_rate,
        "tried": tried,
        "selected_moved": moved[-1] if moved else None,
        "training_seconds": logs[-1]["train_runtime"],
        "commit": json.loads((folder / "environment.json").read_text())["commit"],
    }


def row(run: str, summary: dict[str, float]) -> dict:
    scores = {f"{name}_probability": summary[f"{name}_prob"] for name in SETS}
    return {"run": run, **scores, **{f"{name}_rougeL": summary[f"{name}_rougeL_recall"] for name in SETS}}


def table(rows: list[dict]) -> Table:
    columns = Table(title="Answer probability / ROUGE-L")
    for name in ("run", "learning rate", "forget", "retain", "unseen retain"):
        columns.add_column(name, justify="left" if name == "run" else "right")
    for r in rows:
        scores = [f"{r[f'{name}_probability']:.3f} / {r[f'{name}_rougeL']:.3f}" for name in SETS]
        columns.add_row(r["run"], f"{r.get('learning_rate', 0):g}", *scores)
    return columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tofu_dir", type=Path, required=True, help="folder with TOFU's full.jsonl")
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / "cache" / "tofu_tiny")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    prepare(args.tofu_dir, args.cache)
    base = args.cache / "base"
    rows = [row("base", evaluate(base, args.cache, args.cache / "base-eval", generate=True))]
    rows[0]["training_seconds"] = json.loads((base / "seconds.json").read_text())
    for command in ("npo", "graddiff"):
        for mask in ("dense", *MASKS):
            rows.append(arm(command, mask, args.cache))
            write_result(args.output, {"steps": STEPS, "target": TARGET, "grid": GRID, "rows": rows})
    Console().print(table(rows))


if __name__ == "__main__":
    main()
