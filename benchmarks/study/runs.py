"""Runs of the study: which are done, which are still to do, and at what learning rate."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.environment import ROOT
from benchmarks.study.arms import Arm, run
from benchmarks.study.plan import Case, start_rate
from benchmarks.study.report import seen_kept
from benchmarks.study.world import World
from wagle_trl.evaluation.tofu import write_records
from wagle_trl.files.atomic import write_json

RESULTS = ROOT / "benchmarks" / "results"
ROWS = RESULTS / "study.jsonl"
WORLDS = RESULTS / "study_worlds.jsonl"
ANATOMY = RESULTS / "study_anatomy.jsonl"
FACTOR = 2.0  # between neighbouring learning rates
MAX_RATES = 4


@dataclass(frozen=True)
class Study:
    """
    Raw rows on disk, and the runs that are still to do.

    Args:
        tofu_dir (`pathlib.Path`): Folder with TOFU's files.
        cache (`pathlib.Path`): Models, statistics, and a file for each finished row.
    """

    tofu_dir: Path
    cache: Path

    def world(self, seed: int) -> World:
        return World(self.tofu_dir, self.cache, seed)

    def row(self, arm: Arm, *, attacks: bool) -> dict:
        """The raw row of an arm, run unless it is there."""
        path = self.cache / "rows" / f"{arm.name}.json"
        row = json.loads(path.read_text()) if path.exists() else None
        if row is None or (attacks and "relearn" not in row):
            row = run(arm, self.world(arm.seed), attacks=attacks)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, row)
        return row

    def case(self, case: Case) -> None:
        """All runs of a case."""
        rate = self.rate(case)
        for seed in range(case.seeds):
            self.row(case.arm(rate, seed), attacks=case.attacks)

    def rate(self, case: Case) -> float:
        """The learning rate that the rule picks."""
        if case.rated_by is not None:
            case = replace(case, objective=case.rated_by, rated_by=None)

        def kept(rate: float) -> float:
            return seen_kept(self.row(case.arm(rate, 0), attacks=False))

        return climb(start_rate(case), kept)

    def collect(self) -> None:
        """All finished rows into the results."""
        rows = [json.loads(path.read_text()) for path in sorted((self.cache / "rows").glob("*.json"))]
        write_records(rows, ROWS)
        worlds = sorted(self.cache.glob("world-*/worlds.json"))
        write_records([json.loads(path.read_text()) for path in worlds], WORLDS)


def climb(start: float, value: Callable[[float], float]) -> float:
    """
    Rate with the largest value among `MAX_RATES` or fewer: from the start downwards first, as long as it pays.

    Args:
        start (`float`): First rate.
        value (callable): Rate to what is to be large.
    """
    values = {0: value(start)}
    while len(values) < MAX_RATES:
        best = max(values, key=values.get)
        untried = [place for place in (best - 1, best + 1) if place not in values]
        if not untried:
            break
        # A negative value says that the run forgot too little: only a higher rate can help
        place = untried[-1] if values[best] < 0 else untried[0]
        values[place] = value(rate_at(start, place))
    return rate_at(start, max(values, key=values.get))


def rate_at(start: float, place: int) -> float:
    """The rate so many places from the start."""
    return float(f"{start * FACTOR**place:.3g}")
