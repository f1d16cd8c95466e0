"""What every objective does with its default options: three kinds of data, the default mask, and relearning afterwards.

    python -m benchmarks objectives --tofu_dir TOFU [--cache FOLDER]

Every run has the options of the command that a user would type with no option but the data: 5 % of the weights, and the stop
rule. Then the model writes answers, because an objective that teaches refusals need not make the old answer unlikely once it has
begun. At last some forget rows are learned again, and the others are measured. AltPO has alternates that the model made up;
other objectives that learn other answers have TOFU's refusals. Finished runs are kept in the cache.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.defaults import SETS, run
from benchmarks.environment import ROOT, write_result
from benchmarks.tables import fill, markdown
from benchmarks.worlds import WORLDS, world
from wagle_trl.cli.alternates import run as make_alternates
from wagle_trl.data.rows import load_rows
from wagle_trl.evaluation.attacks import relearn
from wagle_trl.evaluation.tofu import evaluate_rows
from wagle_trl.files.atomic import write_json
from wagle_trl.objectives.names import OBJECTIVES

RESULT = ROOT / "benchmarks" / "results" / "objectives.json"
TABLE = ROOT / "benchmarks" / "OBJECTIVES.md"
SEED = 0
WRITTEN_ROWS = 40  # of each set
TEMPERATURES = (1.0, 1.5, 2.0)  # of alternates
LONGEST = 128  # tokens of a written answer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks objectives")
    parser.add_argument("--tofu_dir", type=Path, required=True, help="folder with TOFU's files and refusals.txt")
    parser.add_argument(
        "--cache", type=Path, default=Path("cache/defaults"), help="folder of models and finished runs"
    )
    parser.add_argument("--only", nargs="*", default=list(WORLDS), help="worlds to run")
    parser.add_argument("--objectives", nargs="*", default=list(OBJECTIVES), help="objectives to run")
    args = parser.parse_args()
    torch.set_num_threads(1)  # two runs side by side take less time than two threads
    for name in args.only:
        for objective in args.objectives:
            path = args.cache / "objectives" / f"{name}-{objective}.json"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                folder = world(name, SEED, args.cache, args.tofu_dir)
                row = run_and_relearn(folder, objective, args.tofu_dir / "refusals.txt")
                write_json(path, {"world": name, "objective": objective, **row})
    collect(args.cache)


def run_and_relearn(folder: Path, objective: str, refusals: Path) -> dict[str, Any]:
    """
    Unlearn with default options, and learn a fifth of the forget rows again.

    Args:
        folder (`pathlib.Path`): The world.
        objective (`str`): Key of `OBJECTIVES`.
        refusals (`pathlib.Path`): File of refusals, for objectives that learn other answers.

    Returns:
        `dict`: That of [`run`]; `written`, the mean ROUGE-L recall of greedy answers to some rows of each set; and `relearned`, the
        answer probability of the other forget rows before relearning and after.
    """
    rows = {}
    if objective == "altpo":
        rows = {"--forget_dataset": str(alternates_of(folder))}
    elif "alternate" in OBJECTIVES[objective].rows:
        rows = {"--refusals": str(refusals)}
    trainer, row = run(folder, objective, "mask", rows=rows)
    model, tokenizer = trainer.model, trainer.processing_class
    forget, unseen = (load_rows(str(folder / f"{name}.jsonl")) for name in ("forget", "unseen"))
    written = {"forget": recall(model, tokenizer, forget), "unseen_retain": recall(model, tokenizer, unseen)}
    curve = relearn(model, tokenizer, forget, progress=False)
    return row | {"written": written, "relearned": [curve.probabilities[0], curve.probabilities[-1]]}


def recall(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> float:
    """Mean ROUGE-L recall of greedy answers to the first rows."""
    first = rows.select(range(min(len(rows), WRITTEN_ROWS)))
    records = evaluate_rows(model, tokenizer, first, "written", max_new_tokens=LONGEST, progress=False)
    return statistics.mean(record["rougeL_recall"] for record in records)


def alternates_of(folder: Path) -> Path:
    """Forget rows with other answers that the model before unlearning makes up, at the lowest temperature that gives all some."""
    for temperature in TEMPERATURES:
        made = folder / f"alternates-{temperature:g}"
        options = {
            "model_name_or_path": folder / "base",
            "forget_dataset": folder / "forget.jsonl",
            "output_dir": made,
            "temperature": temperature,
        }
        argv = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        if make_alternates(argv, "alternates").exit_code == 0:
            return made / "forget.jsonl"
    raise RuntimeError(f"No temperature gives every row of {folder} an alternate.")


def collect(cache: Path) -> None:
    """Write the runs that are done."""
    found = [json.loads(path.read_text()) for path in sorted((cache / "objectives").glob("*.json"))]
    rows = {(row["world"], row["objective"]): row for row in found}
    ordered = [rows[name, objective] for name in WORLDS for objective in OBJECTIVES if (name, objective) in rows]
    write_result(RESULT, {"rows": ordered})
    fill(TABLE, {name: table([row for row in ordered if row["world"] == name]) for name in WORLDS})


def table(rows: list[dict[str, Any]]) -> str:
    """Format the ends of the runs of one world, one line per objective."""
    header = [
        "objective",
        "retain weight",
        "steps",
        "forget",
        "retain",
        "unseen",
        "written, forget",
        "written, unseen",
        "relearned",
    ]
    body = []
    for row in rows:
        end = row["end"]
        numbers = [f"{end[name]:.3f}" for name in SETS]
        body.append(
            [
                OBJECTIVES[row["objective"]]._name,
                f"{row['retain_weight']:g}",
                end["step"],
                *numbers,
                *(f"{row['written'][name]:.2f}" for name in ("forget", "unseen_retain")),
                f"{row['relearned'][0]:.3f} -> {row['relearned'][1]:.3f}",
            ]
        )
    return markdown(header, body)


if __name__ == "__main__":
    main()
