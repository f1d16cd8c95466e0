"""Tuning: learning rate, retain weight and mask of a model and its rows, by successive halving on the rows trained on."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate.utils import release_memory
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging

from ..attribution.config import MaskConfig
from ..comparison.trajectory import trajectory
from ..distributed import world_size
from ..evaluation.resumable_records import PartialRecords
from ..files.run_folder import MASK_FILE, MASKS_FOLDER, TUNED_RUNS_FILE
from ..files.schemas import TunedRun
from ..masks.cache_key import cache_key
from ..masks.fingerprint import fingerprint_of
from ..masks.mask import WeightMask
from ..text import printable
from .base import UnlearningTrainer
from .halving import rungs, successive_halving
from .trajectory import DivergedError
from .tuned import Tuning, described, merit

logger = logging.get_logger(__name__)

RATES = (0.25, 0.5, 1, 2, 4)  # multiples of the default
RETAIN_WEIGHTS = (1.0, 5.0, 20.0)
_SHARE = 4  # of a whole run, in the shortest runs: much shorter ones tell little but the rate
# Nothing but the trajectory is of interest
QUIET = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "save_delta": False,
}
# Beginnings of options that change no weight
_WITHOUT_EFFECT = (
    "output_dir",
    "disable_tqdm",
    "log",
    "report_to",
    "run_name",
    "project",
    "trackio_",
    "save_",
    "hub_",
)
_WITHOUT_EFFECT += ("resume_from_checkpoint", "hash_forget_set", "attribution_")


def tune(
    make_trainer: Callable[..., UnlearningTrainer],
    output_dir: str | Path,
    grid: Mapping[str, Sequence[Any]] | None = None,
    *,
    shortest: int | None = None,
) -> Tuning:
    """
    Choose options of an unlearning trainer: of the runs that forgot, the one that keeps most of the retain rows.

    Runs of all candidates start short, and the better half goes on to runs of twice the length, see
    [`~unlearning.halving.successive_halving`]. The trainer's own options are a candidate that stays until the end. Runs
    are ranked by [`~unlearning.tuned.merit`], on the rows that they were trained on. Finished runs are kept in `output_dir`: after an
    interruption the same call goes on. Each mask is computed once.

    Args:
        make_trainer (callable):
            Makes a new trainer on a newly loaded model, with the options that it gets as keywords:
            `lambda **options: NPOTrainer("model", NPOConfig("out", **options), ...)`. They are fields of the config, and
            those of [`MaskConfig`] that `grid` names.
        output_dir (`str` or `pathlib.Path`): Folder for runs and masks.
        grid (`dict[str, list]`, *optional*):
            Values to try of each option, beside the trainer's own. By default, and beside what is given, learning rates
            from a quarter to four times the trainer's own and retain weights of 1, 5 and 20.
        shortest (`int`, *optional*):
            Steps of the shortest runs, at least. By default a quarter of a run, and the steps between two measurements.

    Returns:
        [`Tuning`]: The runs and what they cost.
    """
    if world_size() > 1:
        raise ValueError("Tuning runs in one process; start it without a launcher.")
    tuner = _Tuner(make_trainer, Path(output_dir), dict(grid or {}), shortest)
    logger.info(f"{len(tuner.candidates)} candidates; (runs, steps of each): {tuner.plan}")
    with tuner.bar:
        runs = successive_halving(tuner.candidates, tuner.plan, tuner.run, lambda run: merit(run, tuner.level))
    if reason := runs[0]["diverged"]:
        raise ValueError(
            f"All {len(runs)} candidates diverged; lower learning_rate. The first: {printable(reason, 400)}"
        )
    mask = tuner.mask_folder(tuner.mask_config(runs[0]["options"]))
    return Tuning(runs, tuner.candidates[0], tuner.level, tuner.steps, len(tuner.masks), mask)


class _Tuner:
    """What the runs of one tuning share."""

    def __init__(
        self, make_trainer: Callable[..., UnlearningTrainer], folder: Path, grid: dict[str, Any], shortest: int | None
    ):
        self.make_trainer, self.folder = make_trainer, folder
        trainer = make_trainer(**QUIET)
        if not trainer.args.trajectory_steps:
            raise ValueError("Tuning ranks runs by what they measure; trajectory_steps must not be 0.")
        self._mask_config = trainer.mask_config
        own = {name: getattr(trainer.args, name) for name in ("learning_rate", "retain_weight")}
        if self._mask_config is not None:
            own |= {name: getattr(self._mask_config, name) for name in ("mask_score", "mask_density")}
        defaults = {
            "learning_rate": [own["learning_rate"] * share for share in RATES],
            "retain_weight": RETAIN_WEIGHTS,
        }
        self.grid = defaults | grid
        own |= {name: _own_value(trainer, name) for name in grid if name not in own}
        values = [_different([value, *self.grid.get(name, ())]) for name, value in own.items()]
        self.varied = [name for name, different in zip(own, values) if len(different) > 1]
        self.candidates = [dict(zip(own, chosen)) for chosen in itertools.product(*values)]
        self.length, self.warmup = _length(trainer), trainer.args.warmup_steps
        shortest = shortest or max(self.length // _SHARE, trainer.args.trajectory_steps)
        self.plan = rungs(len(self.candidates), self.length, shortest)
        self.level = trainer.goal.forget_probability
        self.key = _key(trainer, own)
        self.steps, self.masks = 0, set[Path]()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / TUNED_RUNS_FILE.format(key=self.key[:12])
        if not path.exists() and any(folder.glob(TUNED_RUNS_FILE.format(key="*"))):
            logger.warning(f"{printable(folder)} holds runs of another model, other rows or options: starting afresh.")
        self.records = PartialRecords(path, self.key, TunedRun)
        total = sum(count * steps for count, steps in self.plan)
        self.bar = tqdm(total=total, unit="step", desc="Tuning", disable=trainer.args.disable_tqdm)

    def run(self, options: dict[str, Any], length: int) -> TunedRun:
        """Train with some options, or return the run that was kept."""
        known = (run for run in self.records.records if (run["options"], run["length"]) == (options, length))
        run: Any = next(known, None)
        if run is None:
            run = self._train(options, length)
            self.records.append([run])
            self.bar.total -= length - run["steps"]
            shown = (f"{name} {options[name]}" for name in self.varied)
            self.bar.write(f"{', '.join(shown) or 'defaults'}: {described(run)}")
        else:
            self.bar.total -= length
        self.bar.refresh()
        if folder := self.mask_folder(self.mask_config(options)):
            self.masks.add(folder)
        self.steps += run["steps"]
        return run

    def _train(self, options: dict[str, Any], length: int) -> TunedRun:
        release_memory()  # of the run before
        given = {name: value for name, value in options.items() if name in self.grid}
        if length < self.length:
            given |= {
                "max_steps": length,
                "warmup_steps": self._warmup(given.get("warmup_steps", self.warmup), length),
            }
        trainer = self.make_trainer(**QUIET, **given, disable_tqdm=True)
        for callback in list(trainer.callback_handler.callbacks):
            if isinstance(callback, ProgressCallback | PrinterCallback):
                trainer.remove_callback(callback)
        trainer.add_callback(_Steps(self.bar))
        diverged = None
        try:
            self._give_mask(trainer)
            trainer.train()
        except DivergedError as error:
            diverged = str(error)
            if trainer.state.global_step == 0:
                raise
        return {
            "options": options,
            "length": length,
            "steps": trainer.state.global_step,
            "trajectory": trajectory(trainer.state.log_history),
            "diverged": diverged,
        }

    def _warmup(self, warmup: float, length: int) -> float:
        """The same share of a shorter run; below 1 it is a share already."""
        return warmup if warmup < 1 else math.ceil(warmup * length / self.length)

    # Masks

    def mask_config(self, options: Mapping[str, Any]) -> MaskConfig | None:
        """The options of the mask of a candidate."""
        if self._mask_config is None:
            return None
        return replace(self._mask_config, **{name: options[name] for name in options if name.startswith("mask_")})

    def mask_folder(self, config: MaskConfig | None) -> Path | None:
        """The folder of a mask. Its other options are in the key."""
        if config is None:
            return None
        options = json.dumps({"key": self.key} | _with_effect(asdict(config)), sort_keys=True)
        digest = hashlib.sha256(options.encode()).hexdigest()
        return self.folder / MASKS_FOLDER / f"{config.mask_score}-{config.mask_density:g}-{digest[:8]}"

    def _give_mask(self, trainer: UnlearningTrainer) -> None:
        """Load the mask of a trainer, or let the trainer compute and save it."""
        folder = self.mask_folder(trainer.mask_config)
        if folder is None:
            return
        if (folder / MASK_FILE).exists():
            try:
                mask = WeightMask.load(folder)
                mask.check(trainer.model)
                trainer.mask = mask
                return
            except ValueError as error:
                logger.warning(f"{printable(error, 400)} Computing it again.")
        folder.mkdir(parents=True, exist_ok=True)
        trainer.args.output_dir = str(folder)  # where an interrupted attribution goes on
        trainer.args.disable_tqdm = self.bar.disable  # it takes long, once
        trainer.compute_mask()
        trainer.args.disable_tqdm = True


class _Steps(TrainerCallback):
    """Counts the steps of all runs."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()


def _different(values: Sequence[Any]) -> list[Any]:
    """Values without repetitions, as JSON reads them back: kept runs are found by them."""
    values = json.loads(json.dumps(values))
    return [value for place, value in enumerate(values) if value not in values[:place]]


def _own_value(trainer: UnlearningTrainer, name: str) -> Any:
    for source in (trainer.args, trainer.mask_config):
        if hasattr(source, name):
            return getattr(source, name)
    raise ValueError(
        f"'{printable(name, 100)}' cannot be tuned: it is no option of the trainer or of a mask that it computes."
    )


def _length(trainer: UnlearningTrainer) -> int:
    """Steps of a whole run, as [`~transformers.Trainer`] counts them."""
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    assert args.num_train_epochs is not None  # the trainer chose a number
    per_epoch = math.ceil(len(trainer.get_train_dataloader()) / args.gradient_accumulation_steps)
    return math.ceil(args.num_train_epochs * per_epoch)


def _with_effect(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if not name.startswith(_WITHOUT_EFFECT)}


def _key(trainer: UnlearningTrainer, tuned: Mapping[str, Any]) -> str:
    """Hash all that a run depends on besides the options that are tuned."""
    options = trainer.args.to_dict() | (asdict(trainer.mask_config) if trainer.mask_config else {})
    sets: dict[str, Any] = {"forget": trainer.train_dataset, "retain": trainer.retain_dataset}
    sets |= trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {}
    return cache_key(
        trainer.model,
        objective=trainer._name,
        options={name: value for name, value in _with_effect(options).items() if name not in tuned},
        rows={name: _digest(rows) for name, rows in sets.items()},
        mask=None if trainer.mask is None else fingerprint_of(trainer.mask.bits),
    )


def _digest(rows: Dataset) -> str:
    """Hash prepared rows in their order."""
    digest = hashlib.sha256()
    for row in rows.select_columns(["input_ids", "labels"]):
        digest.update(repr(row).encode())
    return digest.hexdigest()
