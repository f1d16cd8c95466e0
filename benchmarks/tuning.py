"""Does `wagle tune` beat the defaults on personal records, and what does it cost?

    python -m benchmarks tuning [--cache FOLDER]

NPO of 5 % of the weights, on the world of seed 1, on which the defaults keep least. Runs are ranked by the retain rows trained on,
and judged here by unseen ones. Finished runs are kept in the cache.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.environment import ROOT, write_result
from benchmarks.worlds import world
from wagle_trl.cli.tune import run

RESULT = ROOT / "benchmarks" / "results" / "tuning.json"
SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks tuning")
    parser.add_argument("--cache", type=Path, default=Path("cache/defaults"), help="folder of models and runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = world("records", SEED, args.cache, Path())
    options = {f"{name}_dataset": folder / f"{name}.jsonl" for name in ("forget", "retain", "unseen")}
    options |= {"model_name_or_path": folder / "base", "output_dir": args.cache / f"tune-records-{SEED}"}
    options |= {"gradient_checkpointing": "false"}
    found = run(["npo", *(text for name, value in options.items() for text in (f"--{name}", str(value)))], "tune")
    names = ("verdict", "best", "defaults", "level", "steps", "best_steps", "masks_computed", "runs")
    write_result(RESULT, {"world": "records", "seed": SEED} | {name: found.content[name] for name in names})


if __name__ == "__main__":
    main()
