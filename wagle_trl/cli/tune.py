"""`wagle tune OBJECTIVE`: chooses options for a model and its rows. It takes the options of `wagle unlearn`."""

import math
import shlex
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from datasets.utils.logging import disable_progress_bar
from transformers.utils import logging

from ..attribution.config import MaskConfig
from ..comparison.goal import Goal
from ..comparison.tables import Column, TextTable
from ..files.atomic import atomic_path, check_writable
from ..files.run_folder import BEST_FILE
from ..files.schemas import TunedRun
from ..objectives.names import OBJECTIVES
from ..unlearning.base import UnlearningTrainer
from ..unlearning.tuned import Tuning
from ..unlearning.tuning import tune
from .going_on import advising, command_line
from .objectives import chosen_objective, options_elsewhere
from .output import Output
from .parser import WagleParser, given_options
from .train import build_trainer, option_types

_ROWS = 64  # measured per set: candidates differ by less than two lengths of one run


@dataclass
class TuneArguments:
    """
    Options of tuning.

    Args:
        tune_learning_rate, tune_retain_weight, tune_mask_score, tune_mask_density (`list`, *optional*):
            Values to try beside the one of the option itself.
        tune_steps (`int`, *optional*): Steps of the shortest runs.
    """

    tune_learning_rate: list[float] | None = field(
        default=None,
        metadata={
            "help": "Learning rates to try, beside that of the run itself; by default 1/4, 1/2, 2 and 4 times it."
        },
    )
    tune_retain_weight: list[float] | None = field(
        default=None,
        metadata={"help": "Retain weights to try, beside that of the run itself; by default 1, 5 and 20."},
    )
    tune_mask_score: list[str] | None = field(
        default=None, metadata={"help": "Attribution scores to try, beside `mask_score`."}
    )
    tune_mask_density: list[float] | None = field(
        default=None, metadata={"help": "Densities to try, beside `mask_density`."}
    )
    tune_steps: int | None = field(
        default=None,
        metadata={
            "help": "Steps of the shortest runs, at least. By default a quarter of a run, and the steps between two "
            "measurements."
        },
    )

    def __post_init__(self):
        for rate in self.tune_learning_rate or ():
            if not 0 < rate < math.inf:
                raise ValueError(f"tune_learning_rate must be positive and finite, got {rate:g}.")
        for weight in self.tune_retain_weight or ():
            if not 0 <= weight < math.inf:
                raise ValueError(f"tune_retain_weight must not be negative or infinite, got {weight:g}.")
        for score in self.tune_mask_score or ():
            MaskConfig(mask_score=score)  # pyright: ignore[reportArgumentType]
        for density in self.tune_mask_density or ():
            MaskConfig(mask_density=density)
        if self.tune_steps is not None and self.tune_steps < 1:
            raise ValueError(f"tune_steps must be at least 1, got {self.tune_steps}.")

    @property
    def grid(self) -> dict[str, list[Any]]:
        """The values to try, by the name of the option."""
        given = {option.name.removeprefix("tune_"): getattr(self, option.name) for option in fields(self)}
        del given["steps"]
        return {name: values for name, values in given.items() if values is not None}


def run(argv: list[str], command: str) -> Output:
    first = next((argument for argument in argv[:1] if not argument.startswith("-")), None)
    objective = chosen_objective(argv, first)
    parser = WagleParser([TuneArguments, *option_types(objective)], prog=f"wagle {command}", allow_abbrev=False)
    parser.elsewhere = options_elsewhere()
    parser.add_argument(
        "objective", metavar="OBJECTIVE", help=f"One of {', '.join(OBJECTIVES)}; it comes before the options."
    )
    parser.set_defaults(trajectory_rows=_ROWS, stop_forget_probability=Goal.forget_probability)
    args, *parsed, positional = parser.parse_args_and_config(argv)
    if positional.objective != objective:
        parser.error(f"'{positional.objective}' comes before the options")
    objective = positional.objective
    data_args, mask_source, mask_config, training_args, model_args = parsed
    if training_args.resume_from_checkpoint:
        raise ValueError(
            "There are no checkpoints to resume from; the same wagle tune again goes on where it stopped."
        )
    mask = mask_source.trainer_arguments(mask_config, model_args.use_peft)
    if "mask_config" not in mask and (args.tune_mask_score or args.tune_mask_density):
        raise ValueError(
            "tune_mask_score and tune_mask_density need a mask that is computed: --mask auto without adapters."
        )
    verbosity = logging.get_verbosity()

    def make_trainer(**options: Any) -> UnlearningTrainer:
        own = {name: options.pop(name) for name in list(options) if hasattr(mask_config, name)}
        given = mask | ({"mask_config": replace(mask_config, **own)} if "mask_config" in mask else {})
        trainer: Any = build_trainer(
            OBJECTIVES[objective], data_args, replace(training_args, **options), model_args, **given
        )
        logging.set_verbosity_error()  # what the other trainers would warn of was said
        return trainer

    disable_progress_bar()  # of formatting the rows and loading the model, once per run
    logging.disable_progress_bar()
    folder = Path(training_args.output_dir)
    check_writable(training_args.output_dir)
    again = f"To go on where it stopped, the same command again: {command_line(command, argv)}"
    try:
        with advising(lambda error: None if isinstance(error, ValueError) else again):
            result = tune(make_trainer, folder, args.grid, shortest=args.tune_steps)
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    best = folder / BEST_FILE
    given = given_options(argv, parsed) | {"trajectory_rows": training_args.trajectory_rows}
    _write_options(best, result, {"objective": objective} | given)
    return _output(result, best, objective)


def _write_options(path: Path, result: Tuning, given: dict[str, Any]) -> None:
    """Write what makes the best run again: its options and its very mask."""
    options = given | {"output_dir": str(path.parent / path.stem), **result.best["options"]}
    note = ""
    if result.mask is not None:
        own = {name: options.pop(name) for name in list(options) if name.startswith("mask_")}
        note = (
            f"# To compute the mask again, put this in place of `mask`: {yaml.safe_dump(own, default_flow_style=True)}"
        )
        options["mask"] = str(result.mask)
    with atomic_path(path) as temporary:
        temporary.write_text(note + yaml.safe_dump(options, sort_keys=False), encoding="utf-8")


def _output(result: Tuning, best: Path, objective: str) -> Output:
    shown = [run["options"] for run in result.runs]
    varied = [name for name in shown[0] if any(options[name] != shown[0][name] for options in shown)]
    columns = [
        Column("candidate", "", str, right=False),
        *(
            Column(name, name.replace("_", " "), lambda v: f"{v:g}" if isinstance(v, float) else str(v))
            for name in varied
        ),
        Column("steps", "steps", str),
        *(
            Column(name, name.replace("_", " "), lambda change: f"{change[0]:.3f} -> {change[1]:.3f}")
            for name in result.best["trajectory"]
            if name != "step"
        ),
        Column("diverged", "", str, right=False),
    ]
    lines = [(str(place), _cells(run, result)) for place, run in enumerate(result.runs, 1)]
    table = TextTable.of(f"Runs of {OBJECTIVES[objective]._name}, best first", lines, columns)
    content = {
        "output_dir": str(best.parent),
        "config": str(best),
        "verdict": result.verdict,
        "best": result.best["options"],
        "defaults": result.defaults,
        "level": result.level,
        "steps": result.steps,
        "best_steps": result.best["steps"],
        "masks_computed": result.masks,
        "runs": result.runs,
    }
    cost = f"{result.steps} steps in all, {result.best['steps']} of the best run; masks computed: {result.masks}."
    return Output(
        content, [table.to_rich(), result.verdict, cost, f"Written: wagle unlearn --config {shlex.quote(str(best))}"]
    )


def _cells(run: TunedRun, result: Tuning) -> dict[str, Any]:
    measured = {} if run["diverged"] else {name: (v[0], v[-1]) for name, v in run["trajectory"].items()}
    note = {"candidate": "defaults"} if run is result.default_run else {}
    note |= {"diverged": "diverged"} if run["diverged"] else {}
    return run["options"] | measured | {"steps": f"{run['steps']}/{run['length']}"} | note
