"""Groups of runs that differ in nothing but the seed: means over seeds, with intervals."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..files.schemas import Attack
from ..text import escaped, one_line
from .common_settings import common_settings, distinct_names
from .interval import Interval, intervals
from .runs import Compared, Run, attack_label

# Options of an evaluation that may differ between seeds: their rows, and what changes no result
_OF_A_SEED = ("forget_dataset", "retain_dataset", "unseen_dataset", "holdout_dataset", "tofu_dir", "reference_records")
_OF_A_SEED += ("batch_size", "attack", "relearn_seed")


@dataclass(frozen=True)
class Group(Compared):
    """
    Runs of at least two seeds. Its numbers are [`~comparison.interval.Interval`]s over them.

    Args:
        label (`str`): What tells it apart from the other groups, and the number of seeds.
        runs (`list[Run]`): One run per seed.
        common (`dict`): Settings that the runs share, see [`~comparison.common_settings.common_settings`].
        repeated (`list[Run]`): Further runs of the same seeds, which would count twice.
    """

    label: str
    runs: Sequence[Run]
    common: Mapping[str, Any]
    repeated: Sequence[Run] = ()

    @property
    def members(self) -> Sequence[Run]:
        return self.runs

    @property
    def remarks(self) -> list[str]:
        """Sentences on runs, and evaluations, that are left out."""
        return [
            f"{escaped(run.label)} has a seed that another run has, and is left out of the mean."
            for run in self.repeated
        ] + [
            f"{escaped(label)} was evaluated with other options than the first run ({escaped(', '.join(names))}); its evaluation "
            "is left out of the mean."
            for label, names in self.evaluated_otherwise.items()
        ]

    @cached_property
    def evaluated_otherwise(self) -> dict[str, list[str]]:
        """Options in which the evaluations of runs differ from the first one, by the labels of these runs."""
        options = {run.label: run.evaluation.get("options", {}) for run in self.runs if run.measured()}
        first = {name: value for given in reversed(options.values()) for name, value in given.items()}
        names = [name for name in first if name not in _OF_A_SEED]
        differ = {
            label: [name for name in names if given.get(name, first[name]) != first[name]]
            for label, given in options.items()
        }
        return {label: found for label, found in differ.items() if found}

    @cached_property
    def _evaluated_alike(self) -> list[Run]:
        return [run for run in self.runs if run.label not in self.evaluated_otherwise]

    @cached_property
    def settings(self) -> dict[str, Any]:
        names = dict.fromkeys(name for run in self.runs for name in run.settings)
        return {name: self.common[name] for name in names if name in self.common}

    def course(self) -> dict[str, Interval]:
        return intervals([run.course() for run in self.runs])

    def kept(self) -> dict[str, Interval]:
        return intervals([run.kept() for run in self.runs])

    @cached_property
    def attacks(self) -> dict[str, Attack]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Result of each attack in the first run that has it, by its name."""
        return {attack: content for run in reversed(self._evaluated_alike) for attack, content in run.attacks.items()}

    def measured(self, attack: str | None = None) -> dict[str, Interval]:
        alike = self._evaluated_alike
        if attack is not None:
            label = attack_label(attack, self.attacks[attack])  # two kinds of rounding have no common mean
            has_it = (run for run in alike if attack in run.attacks)
            alike = [run for run in has_it if attack_label(attack, run.attacks[attack]) == label]
        return intervals([run.measured(attack) if run in alike else {} for run in self.runs])

    def average(
        self, curve: Callable[[Run], tuple[Sequence[float], Sequence[float]]]
    ) -> tuple[list[float], list[Interval]]:
        """
        Average curves of the runs where all of them were measured.

        Args:
            curve (callable): Places and values of the curve of a run.
        """
        tables = [dict(zip(*curve(run), strict=True)) for run in self.runs]
        common = [place for place in tables[0] if all(place in table for table in tables)]
        return common, [Interval.of([table[place] for table in tables]) for place in common]


def group_runs(runs: Sequence[Run]) -> list[Run | Group]:
    """
    Group runs that differ in nothing but the seed.

    Args:
        runs (`list[Run]`): Runs, of which those without a seed stay alone.

    Returns:
        `list[Run | Group]`: Groups of at least two seeds, and all other runs, by their first run.
    """
    settings = dict(zip((run.label for run in runs), common_settings(runs), strict=True))
    alike: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        key = (
            run.label if run.seed is None else tuple(sorted((name, str(v)) for name, v in settings[run.label].items()))
        )
        alike[key].append(run)
    several = [found for found in alike.values() if len({run.seed for run in found}) > 1]
    names = iter(distinct_names([settings[found[0].label] for found in several]))
    lines: list[Run | Group] = []
    for found in alike.values():
        if found not in several:
            lines += found
            continue
        first = {run.seed: run for run in reversed(found)}
        members = [run for run in found if first[run.seed] is run]
        label = f"{one_line(next(names), 100)} ({len(members)} seeds)"
        lines.append(Group(label, members, settings[found[0].label], [run for run in found if run not in members]))
    return lines
