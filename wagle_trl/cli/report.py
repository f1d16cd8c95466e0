"""`wagle report RUN...`: compares finished runs, from the files in their folders."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..comparison.document import write_document
from ..comparison.groups import Group, group_runs
from ..comparison.interval import plain_numbers
from ..comparison.runs import load_runs
from ..files.atomic import check_writable
from ..files.run_folder import EVALUATION_FILE, REPORT_FILE
from .output import Output
from .parser import WagleParser


@dataclass
class ReportArguments:
    """Option that names the folder of the comparison."""

    output_dir: str = field(
        default="wagle-report", metadata={"help": "Folder for report.md, the spreadsheets and the figures."}
    )


def run(argv: list[str], command: str) -> Output:
    parser = WagleParser([ReportArguments], prog=f"wagle {command}", allow_abbrev=False)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help=f"Output folder of a run (runs come before options), with {REPORT_FILE} (wagle unlearn, sft, mask), {EVALUATION_FILE} (wagle "
        "eval --output_dir RUN) or both; folders inside it are not searched.",
    )
    args, positional = parser.parse_args_and_config(argv)
    runs = load_runs(positional.runs)
    lines = group_runs(runs)
    groups = [line for line in lines if isinstance(line, Group)]
    label_of = {run.label: group.label for group in groups for run in (*group.runs, *group.repeated)}
    check_writable(args.output_dir)
    files, tables = write_document(lines, Path(args.output_dir))
    content = {
        "output_dir": args.output_dir,
        "files": [str(file) for file in files],
        "runs": [
            {
                "run": run.label,
                "folder": str(run.folder),
                "group": label_of.get(run.label),
                "remarks": run.remarks,
                **run.numbers(),
            }
            for run in runs
        ],
        "groups": [_group(group) for group in groups],
    }
    remarks = [f"{line.label}: {' '.join(line.remarks)}" for line in (*runs, *groups) if line.remarks]
    return Output(
        content, [*(table.to_rich() for table in tables), *remarks, f"Written: {' '.join(content['files'])}"]
    )


def _group(group: Group) -> dict[str, Any]:
    return {
        "group": group.label,
        "runs": [run.label for run in group.runs],
        "seeds": [run.seed for run in group.runs],
        "remarks": group.remarks,
        **plain_numbers(group.numbers()),
    }
