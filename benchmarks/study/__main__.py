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
from contextlib import redirect_stdout
from dataclasses import fields, replace
from pathlib import Path

from benchmarks.environment import ROOT
from benchmarks.study.arms import Arm, run
from benchmarks.study.figures import draw
from benchmarks.study.masks import anatomy
from benchmarks.study.plan import DISSECTED, PLAN
from benchmarks.study.report import picked, write_report
from benchmarks.study.runs import ANATOMY, ROWS, WORLDS, Study
from benchmarks.study.world import World
from wagle_trl.data.rows import read_jsonl
from wagle_trl.evaluation.tofu import write_records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("worlds", "run", "arm", "anatomy"):
        command = commands.add_parser(name)
        command.add_argument("--tofu_dir", type=Path, required=True, help="folder with TOFU's files")
        command.add_argument("--cache", type=Path, default=ROOT / "benchmarks" / "cache" / "study")
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
