"""`wagle demo`: a tiny model learns and forgets."""

from dataclasses import dataclass, field

import transformers
from datasets.utils.logging import disable_progress_bar

from ..demo.run import run_demo
from ..files.atomic import translate_disk_errors
from .output import Output
from .parser import parse


@dataclass
class DemoArguments:
    """Options of the demo."""

    output_dir: str = field(default="demo-output", metadata={"help": "Folder for the model, mask, plot and results."})
    seed: int = field(default=0, metadata={"help": "Seed of people, weights and batches."})


def run(argv: list[str], command: str) -> Output:
    (args,) = parse([DemoArguments], argv, command)
    disable_progress_bar()  # those of formatting a few hundred rows; training and evaluation keep their own
    transformers.logging.set_verbosity_error()
    with translate_disk_errors(args.output_dir):
        rows, tables = run_demo(args.output_dir, args.seed)
    closing = (
        f"Written to {args.output_dir}/: the unlearned model, wagle_mask.safetensors, wagle_mask.png, report.json; "
        f"base/ and the data for your own runs:\nwagle npo --model_name_or_path {args.output_dir}/base "
        f"--forget_dataset {args.output_dir}/forget.jsonl --retain_dataset {args.output_dir}/retain.jsonl"
    )
    return Output({"output_dir": args.output_dir, "rows": rows}, [*tables, closing])
