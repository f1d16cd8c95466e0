"""Finished runs, read from their folders: no model is loaded."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.lengths import AnswerTokens
from ..files.manifest import check_same_run
from ..files.reading import read_json
from ..files.run_folder import EVALUATION_FILE, MASK_FILE, REPORT_FILE
from ..files.schemas import Attack, Evaluation, Report
from ..masks.mask import WeightMask
from ..text import escaped
from .history import History
from .settings import settings
from .trajectory import matched
from .verdict import closing_verdict

LEVELS = (0.3, 0.1)  # forget probabilities at which runs are compared
_PEAKS = ("attribution", "training")


class Compared(ABC):
    """What tables and figures show as one row or line: a run, or a group of runs that differ in nothing but the seed."""

    label: str
    attacks: Mapping[str, Attack]
    repeated: "Sequence[Run]" = ()  # further runs of the same seeds, which would count twice

    @property
    @abstractmethod
    def members(self) -> "Sequence[Run]":
        """The runs."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What decided the result, see [`~comparison.settings.settings`]."""

    @abstractmethod
    def course(self) -> dict[str, Any]:
        """Collect what was measured of the training: `steps`, `saved_step`, and the peaks of memory in bytes."""

    @abstractmethod
    def kept(self) -> dict[str, Any]:
        """Collect the answer probabilities of the saved weights, and those on the way, see [`numbers`]."""

    @abstractmethod
    def measured(self, attack: str | None = None) -> dict[str, Any]:
        """Collect the numbers of the evaluation of the saved weights, or of one of its attacks."""

    @property
    def sets(self) -> list[str]:
        """Sets of rows that the trajectories watched."""
        return list(dict.fromkeys(name for run in self.members for name in run.trajectory if name != "step"))

    def numbers(self) -> dict[str, Any]:
        """
        Collect what tables show, flat.

        Returns:
            `dict`: The settings; `steps`, `saved_step`, `attribution_peak_bytes`, `training_peak_bytes`; the answer
            probabilities of the saved weights (`final_{set}`), and those where the trajectory passed each of `LEVELS`
            (`step_at_0.3`, `retain_at_0.3`, ...); the numbers of the evaluation, which is of the saved weights, under its
            own names; those of an attack as `{attack}_{name}`, of quantization with `{attack}_rounding`. Numbers that are
            unknown for these weights are left out.
        """
        known = self.settings | self.course() | self.kept() | self.measured()
        for attack, content in self.attacks.items():
            known |= {f"{attack}_{name}": value for name, value in self.measured(attack).items()}
            known[f"{attack}_rounding"] = content.get("rounding")
        return {name: value for name, value in known.items() if not _is_unknown(value)}


@dataclass(frozen=True)
class Run(Compared):
    """
    Finished run.

    Args:
        label (`str`): Name that no other run has.
        folder (`pathlib.Path`): Folder of the run.
        training ([`~files.schemas.Report`]): Content of `wagle_report.json`; empty if the folder has none.
        evaluation ([`~files.schemas.Evaluation`]): Content of `wagle_eval.json`; empty if the folder has none.
            Use [`Compared.measured`] and `attacks`, which leave out an evaluation of other weights.
    """

    label: str
    folder: Path
    training: Report
    evaluation: Evaluation

    @cached_property
    def history(self) -> History:
        """History of the training, from the report."""
        return History(self.training)

    @property
    def trajectory(self) -> dict[str, list[float]]:
        """Columns of answer probabilities over the steps, see [`~comparison.history.History.trajectory`]."""
        return self.history.trajectory

    @property
    def evaluates_other_weights(self) -> bool:
        """Whether the evaluation is of other weights than the report, as when an earlier run left it."""
        saved = self.training.get("fingerprint")
        evaluated = self.evaluation.get("adapter_fingerprint", self.evaluation.get("fingerprint"))
        return None not in (saved, evaluated) and saved != evaluated

    @property
    def remarks(self) -> list[str]:
        """Sentences on which weights the numbers are of."""
        history, remarks = self.history, []
        if history.num_calls > 1:
            remarks.append(
                f"It was trained in {history.num_calls} calls of `train`; steps are counted over all of them."
            )
        if history.saved_step != history.steps:
            remarks.append(
                f"The saved weights are those of step {history.saved_step}, the best of {history.steps} steps."
            )
        if history.trajectory["step"] and not history.saved:
            remarks.append("The answer probabilities of the saved weights were not measured during training.")
        if self.evaluates_other_weights:
            remarks.append(f"{EVALUATION_FILE} in its folder is of other weights. It is left out.")
        for name, counted in self.training.get("answer_tokens", {}).items():
            if counted["rows_cut"]:
                remarks.append(f"Of the {escaped(name)} set, {AnswerTokens(**counted)}.")
        return remarks

    @property
    def verdict(self) -> str | None:
        """What came of unlearning, see [`~comparison.verdict.closing_verdict`]."""
        return closing_verdict(self.history, self.training.get("options", {}))

    @property
    def attacks(self) -> dict[str, Attack]:
        """Result of each attack of the evaluation, by its name."""
        return {} if self.evaluates_other_weights else self.evaluation.get("attacks", {})

    @property
    def has_mask(self) -> bool:
        """Whether the folder has a mask."""
        return (self.folder / MASK_FILE).exists()

    def load_mask(self) -> WeightMask:
        """Load the mask of the folder."""
        return WeightMask.load(self.folder)

    @property
    def members(self) -> "Sequence[Run]":
        return [self]

    @cached_property
    def settings(self) -> dict[str, Any]:
        evaluated = {"base_model": self.evaluation.get("base_model")} if self.evaluation.get("base_model") else {}
        return evaluated | settings(self.training)

    @property
    def seed(self) -> int | float | str | None:
        """Seed of the training."""
        return self.settings.get("seed")

    def course(self) -> dict[str, Any]:
        peaks = self.training.get("cost", {}).get("peak_memory_bytes", {})
        found = {
            "steps": self.history.steps,
            "saved_step": self.history.saved_step if self.history.saved_step != self.history.steps else None,
            **{f"{phase}_peak_bytes": peaks.get(phase) for phase in _PEAKS},
        }
        return {name: value for name, value in found.items() if value is not None}

    def kept(self) -> dict[str, Any]:
        kept = {f"final_{name}": value for name, value in self.history.saved.items()}
        columns = self.trajectory
        for level in LEVELS:
            kept |= {f"{name}_at_{level}": value for name, value in (matched(columns, level) or {}).items()}
        return kept

    def measured(self, attack: str | None = None) -> dict[str, Any]:
        if self.evaluates_other_weights:
            return {}
        content = self.evaluation if attack is None else self.attacks[attack]
        return {name: value for name, value in content.items() if isinstance(value, int | float)}


def load_runs(folders: Sequence[str | os.PathLike]) -> list[Run]:
    """
    Read the folders of runs.

    Args:
        folders (`list[str]`): Output folders of trainers, with `wagle_report.json`, or of evaluations, with
            `wagle_eval.json`, or of both in one. Folders inside them are not searched.

    Returns:
        `list[Run]`: Runs in the same order. Their labels are the shortest ends of the paths that tell them apart.
    """
    return [_load(Path(folder), label) for folder, label in zip(folders, labels(folders), strict=True)]


def labels(folders: Iterable[str | os.PathLike]) -> list[str]:
    """Find the shortest end of every path that no other has, such as `dense`, or `seed-1/dense`."""
    paths = [Path(folder).resolve().parts for folder in folders]
    for place, parts in enumerate(paths):
        if parts in paths[:place]:
            raise ValueError(f"{Path(*parts)} is given twice.")
    return [_label(parts, [other for other in paths if other != parts]) for parts in paths]


def _label(parts: tuple[str, ...], others: list[tuple[str, ...]]) -> str:
    length = 1
    while length < len(parts) and any(other[-length:] == parts[-length:] for other in others):
        length += 1
    return Path(*parts[-length:]).as_posix()


def _load(folder: Path, label: str) -> Run:
    if not folder.is_dir():
        raise ValueError(f"No run at '{folder}': the folder does not exist.")
    files = [folder / name for name in (REPORT_FILE, EVALUATION_FILE)]
    if not any(file.exists() for file in files):
        raise ValueError(
            f"'{folder}' is not the folder of a run: it has neither {REPORT_FILE} (of wagle unlearn, sft or "
            f"mask) nor {EVALUATION_FILE} (of wagle eval)."
        )
    check_same_run(folder, [name for name in (REPORT_FILE, MASK_FILE) if (folder / name).exists()])
    return read_run(folder, label)


def read_run(folder: Path, label: str = "") -> Run:
    """Read the run in a folder, from those of its files that exist."""
    report, evaluation = folder / REPORT_FILE, folder / EVALUATION_FILE
    return Run(
        label,
        folder,
        read_json(report, Report) if report.exists() else {},
        read_json(evaluation, Evaluation) if evaluation.exists() else {},
    )


def _is_unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def runs_of(lines: Iterable[Compared]) -> list[Run]:
    """List all runs of runs and groups."""
    return [run for line in lines for run in (*line.members, *line.repeated)]


def attack_label(attack: str, content: Mapping[str, Any]) -> str:
    """Name an attack for readers. Quantization names its rounding: two kinds of rounding are not comparable."""
    label = attack.removeprefix("quantize_")
    return f"{label} ({content['rounding']})" if "rounding" in content else label


def words(name: str) -> str:
    """Name a key for readers."""
    return name.replace("_", " ")
