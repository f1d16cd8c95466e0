"""What the default options do: three kinds of data, both objectives, all weights, a mask and adapters.

    python -m benchmarks defaults --tofu_dir TOFU [--cache FOLDER]

Every run has the options of the command that a user would type with no option but the data and what trains. The stop rule
ends it; on seed 0 it then goes on to the length that it would have had without, to see what more steps would have brought.
Finished runs are kept in the cache, so that a study that was cut off goes on.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.environment import ROOT, environment, write_result
from benchmarks.tables import fill, markdown
from benchmarks.worlds import WORLDS, world
from wagle_trl.cli.train import TRAINERS, build_trainer, parse_options
from wagle_trl.comparison.interval import Interval, intervals, plain_numbers
from wagle_trl.comparison.trajectory import probabilities
from wagle_trl.files.atomic import write_json
from wagle_trl.unlearning.base import UnlearningTrainer
from wagle_trl.unlearning.trajectory import Trajectory

RESULT = ROOT / "benchmarks" / "results" / "defaults.json"
README = ROOT / "README.md"
SETTINGS = ROOT / "docs" / "settings.md"
ARMS = {"dense": ["--mask", "none"], "mask": [], "lora": ["--use_peft"]}
SEEDS = 3
TITLES = {"npo": "NPO", "graddiff": "GradDiff"}
SETS = ("forget", "retain", "unseen_retain")
WHEN = ("before", "end", "whole")
QUIET = ["--report_to", "none", "--save_strategy", "no", "--gradient_checkpointing", "false"]  # these change no weight


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks defaults")
    parser.add_argument("--tofu_dir", type=Path, required=True, help="folder with TOFU's files")
    parser.add_argument(
        "--cache", type=Path, default=Path("cache/defaults"), help="folder of models and finished runs"
    )
    parser.add_argument("--only", nargs="*", default=list(WORLDS), help="worlds to run")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(SEEDS)), help="seeds to run")
    args = parser.parse_args()
    torch.set_num_threads(1)  # two runs side by side take less time than two threads
    for seed, name, objective, arm in itertools.product(args.seeds, args.only, TITLES, ARMS):
        path = args.cache / "rows" / f"{name}-{seed}-{objective}-{arm}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _, row = run(world(name, seed, args.cache, args.tofu_dir), objective, arm, goes_on=seed == 0)
            write_json(path, {"world": name, "seed": seed, "objective": objective, "arm": arm, **row})
    collect(args.cache)


def run(
    folder: Path, objective: str, arm: str, goes_on: bool = False, rows: Mapping[str, str] | None = None
) -> tuple[UnlearningTrainer, dict[str, Any]]:
    """
    Unlearn with default options, as `wagle unlearn` does.

    Args:
        folder (`pathlib.Path`): The world.
        objective, arm (`str`): Name of an objective, and key of `ARMS`.
        goes_on (`bool`, *optional*, defaults to `False`):
            Whether to go on after the end of the run, as far as a run would go without the stop rule.
        rows (`dict[str, str]`, *optional*): Options for other answers, such as `{"--refusals": path}`.

    Returns:
        `tuple[UnlearningTrainer, dict]`: The trainer; and the options that it chose, answer probabilities of all rows of each
        set `before` the first step, at the `end` of the run, and of the `whole` length, and the curve of some rows.
    """
    with TemporaryDirectory() as scratch:
        argv = ["--model_name_or_path", str(folder / "base"), "--output_dir", scratch, *ARMS[arm], *QUIET]
        files = {f"--{name}_dataset": str(folder / f"{name}.jsonl") for name in ("forget", "retain", "unseen")}
        argv += itertools.chain(*(files | dict(rows or {})).items())
        data, source, mask, options, model = parse_options(argv, objective, objective)
        chosen = source.trainer_arguments(mask, model.use_peft)
        trainer = build_trainer(TRAINERS[objective], data, options, model, **chosen)
        watching = WatchEnd(trainer, goes_on)
        trainer.add_callback(watching)
        start = time.process_time()
        trainer.train()
    where = environment()
    return trainer, {
        **{name: getattr(trainer.args, name) for name in ("learning_rate", "retain_weight", "num_train_epochs")},
        **watching.measured,
        "cpu_seconds": round(time.process_time() - start),
        "trajectory": trainer.history.trajectory,
        **{key: where[key] for key in ("date", "commit", "versions")},
    }


class WatchEnd(TrainerCallback):
    """
    Measures all rows of every set where the run ends, and may let it go on.

    Args:
        trainer ([`~unlearning.base.UnlearningTrainer`]): Trainer that stops when it is done.
        goes_on (`bool`): Whether the run goes on.
    """

    def __init__(self, trainer: UnlearningTrainer, goes_on: bool):
        self.everything, self.goes_on = Trajectory(trainer, steps=1, rows=sys.maxsize), goes_on
        self.measured: dict[str, dict[str, float]] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._measure("before", 0)

    def on_step_end(self, args, state, control, **kwargs):
        is_last = state.global_step == state.max_steps
        if "end" not in self.measured and (control.should_training_stop or is_last):
            self._measure("end", state.global_step)
        if self.goes_on:
            control.should_training_stop = is_last
            if is_last:
                self._measure("whole", state.global_step)

    def _measure(self, when: str, step: int) -> None:
        self.measured[when] = {"step": step, **probabilities(self.everything.measure())}


def collect(cache: Path) -> None:
    """Write the rows that are done and their means over the seeds."""
    rows = [json.loads(path.read_text()) for path in sorted((cache / "rows").glob("*.json"))]
    groups = []
    for (name, objective, arm), found in grouped(rows).items():
        numbers = [
            {f"{when}_{key}": value for when in WHEN if when in row for key, value in row[when].items()}
            for row in found
        ]
        group = {"world": name, "objective": objective, "arm": arm, "seeds": len(found)}
        groups.append(group | plain_numbers(intervals(numbers)))
    write_result(RESULT, {"groups": groups, "rows": rows})
    fill(SETTINGS, {"defaults": table(rows)})
    fill(README, {"defaults": table([row for row in rows if row["objective"] == "npo"])})


def grouped(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Group rows that differ in the seed by world, objective and arm."""
    groups = {key: [] for key in itertools.product(WORLDS, TITLES, ARMS)}
    for row in rows:
        groups[row["world"], row["objective"], row["arm"]].append(row)
    return {key: found for key, found in groups.items() if found}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the means over the seeds at the end of the runs, one line per world, objective and arm."""
    header = ["data", "objective", "what trains", "seeds", "steps", *(f"{name}, before -> end" for name in SETS)]
    body = []
    for (name, objective, arm), found in grouped(rows).items():
        steps = statistics.mean(row["end"]["step"] for row in found)
        kept = [
            f"{statistics.mean(row['before'][part] for row in found):.3f} -> "
            f"{Interval.of(row['end'][part] for row in found)}"
            for part in SETS
        ]
        body.append([name, TITLES[objective], arm, len(found), f"{steps:.0f}", *kept])
    return markdown(header, body)


if __name__ == "__main__":
    main()
