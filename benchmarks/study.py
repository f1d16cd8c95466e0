"""Does the mask help, and against what? Unlearning real rows with every score, judged at matched forgetting.

    python -m benchmarks study worlds --tofu_dir PATH/TO/tofu --seeds 0 1 2 3 4 # models to unlearn, 7 minutes each
    python -m benchmarks study run --tofu_dir PATH/TO/tofu      # the whole plan; an interrupted run goes on
    python -m benchmarks study anatomy --tofu_dir PATH/TO/tofu  # where the masks are
    python -m benchmarks study arm --tofu_dir PATH/TO/tofu --objective npo --score fisher_ratio --density 0.05 \\
        --scope blocks --learning_rate 4e-4 --seed 0            # one run, its raw row on stdout
    python -m benchmarks study report                           # tables and figures from the raw rows, no model

Every case (objective, score, density, scope) tries learning rates by one rule, on seed 0: uphill by factors of two in
what is kept of the *seen* retain rows when the forget probability reaches 0.1 (by step 40), until both neighbours of
the best are worse, in at most four runs. The best runs on the other seeds. The unseen retain rows, which decide, have
no say in it. `benchmarks/STUDY.md` says the rest.
"""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, fields, replace
from pathlib import Path

from benchmarks.study_arms import Arm, run
from benchmarks.study_figures import draw
from benchmarks.study_masks import anatomy
from benchmarks.study_plan import DISSECTED, PLAN, Case, start_rate
from benchmarks.study_report import picked, seen_kept, write_report
from benchmarks.study_world import World
from wagle_trl.data.rows import read_jsonl
from wagle_trl.evaluation.tofu import write_records
from wagle_trl.files.atomic import write_json

ROWS = Path(__file__).parent / "results" / "study.jsonl"
WORLDS = Path(__file__).parent / "results" / "study_worlds.jsonl"
ANATOMY = Path(__file__).parent / "results" / "study_anatomy.jsonl"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("worlds", "run", "arm", "anatomy"):
        command = commands.add_parser(name)
        command.add_argument("--tofu_dir", type=Path, required=True, help="folder with TOFU's files")
        command.add_argument("--cache", type=Path, default=Path(__file__).parent / "cache" / "study")
    commands.choices["run"].add_argument("--stage", choices=PLAN, nargs="*", default=list(PLAN))
    commands.choices["run"].add_argument("--seeds", type=int, default=5, help="at most so many of a case")
    commands.choices["run"].add_argument("--worker", default="0/1", help="this process of so many, such as 0/2")
    for field in fields(Arm):
        commands.choices["arm"].add_argument(f"--{field.name}", type=field.type, required=True)
    commands.choices["worlds"].add_argument("--seeds", type=int, nargs="+", required=True)
    commands.add_parser("report")
    args = parser.parse_args()
    if args.command == "report":
        rows = read_jsonl(ROWS)
        write_report(rows, read_jsonl(WORLDS), read_jsonl(ANATOMY))
        draw(picked(rows))
    elif args.command == "worlds":
        worlds = [World(args.tofu_dir, args.cache, seed) for seed in args.seeds]
        for world in worlds:
            world.prepare()
        for world in worlds:
            world.report()
    elif args.command == "anatomy":
        world = World(args.tofu_dir, args.cache, 0)
        write_records([anatomy(world, *mask) for mask in DISSECTED], ANATOMY)
    elif args.command == "arm":
        arm = Arm(**{field.name: getattr(args, field.name) for field in fields(Arm)})
        with redirect_stdout(sys.stderr):  # for the trainer's logs
            row = run(arm, World(args.tofu_dir, args.cache, arm.seed), attacks=True)
        print(json.dumps(row, indent=2))
    else:
        study = Study(args.tofu_dir, args.cache)
        worker, workers = map(int, args.worker.split("/"))
        cases = [case for stage in args.stage for case in PLAN[stage]]
        for case in cases[worker::workers]:
            study.case(replace(case, seeds=min(case.seeds, args.seeds)))
            study.collect()


if __name__ == "__main__":
    main()
