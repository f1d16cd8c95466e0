"""`wagle report RUN...`: compares finished runs, from the files in their folders."""

from dataclasses import dataclass, field
from pathlib import Path

from ..comparison.document import write_document
from ..comparison.runs import load_runs
from ..files.atomic import check_writable
from ..files.run_folder import EVALUATION_FILE, REPORT_FILE
from .output import Output
from .parser import WagleParser


@dataclass
class ReportArguments:
    """Option that names the folder of the comparison."""

    output_dir: str = field(default="wagle-report", metadata={"help": "Folder for report.md and the figures."})


def run(argv: list[str], command: str) -> Output:
    parser = WagleParser([ReportArguments], prog=f"wagle {command}", allow_abbrev=False)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help=f"Output folder of a run (runs come before options), with {REPORT_FILE} (wagle npo, graddiff, sft, mask), {EVALUATION_FILE} (wagle "
        "eval --output_dir RUN) or both; folders inside it are not searched.",
    )
    args, positional = parser.parse_args_and_config(argv)
    runs = load_runs(positional.runs)
    check_writable(args.output_dir)
    files, tables = write_document(runs, Path(args.output_dir))
    content = {
        "output_dir": args.output_dir,
        "files": [str(file) for file in files],
        "runs": [{"run": run.label, "folder": str(run.folder), **run.numbers()} for run in runs],
    }
    return Output(content, [*(table.to_rich() for table in tables), f"Written: {' '.join(content['files'])}"])
