"""`wagle demo`: small models learn and forget."""

import logging
from dataclasses import dataclass, field

import transformers
from datasets.utils.logging import disable_progress_bar

from ..demo.run import run_demo
from ..demo.screen import screen
from ..files.atomic import translate_disk_errors
from .output import Output
from .parser import parse


@dataclass
class DemoArguments:
    """Options of the demo."""

    output_dir: str = field(default="demo-output", metadata={"help": "Folder for models, masks, plots and results."})
    seed: int = field(default=0, metadata={"help": "Seed of people, weights and batches."})


def run(argv: list[str], command: str) -> Output:
    (args,) = parse([DemoArguments], argv, command)
    disable_progress_bar()  # those of formatting a few hundred rows; training keeps its own
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # of loading and saving
    ours = logging.getLogger("wagle_trl")
    level = ours.level
    ours.setLevel(logging.ERROR)  # what it says of each run, the stages say
    try:
        with translate_disk_errors(args.output_dir):
            done = run_demo(args.output_dir, args.seed)
    finally:
        ours.setLevel(level)
        transformers.logging.enable_progress_bar()
    rows = [forgetting.numbers() for forgetting in done]
    return Output({"output_dir": args.output_dir, "rows": rows}, screen(done, args.output_dir))
