"""The comparison of runs as one Markdown file with figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..attribution.report import draw_masks
from ..files.atomic import move_into_place, staging_folder
from ..files.figure import write_figure
from ..text import escaped
from .figures import plot_relearning, plot_trade_off, plot_trajectories
from .groups import Group
from .peaks import plot_memory
from .runs import LEVELS, Run, runs_of
from .spreadsheets import GROUPS_FILE, RUNS_FILE, write_spreadsheets
from .tables import TextTable, attack_tables, evaluation_tables, group_table, kept_tables, setup_table

DOCUMENT_FILE = "report.md"
TRAJECTORY_FILE = "trajectory.png"
TRADE_OFF_FILE = "trade_off.png"
RELEARNING_FILE = "relearning.png"
MASKS_FILE = "masks.png"
MEMORY_FILE = "memory.png"
SPREADSHEETS = (
    f"{RUNS_FILE} has every number of every run. Columns that begin with 'final' are of the saved weights, those that end with "
    "a level on the way, where the forget probability passes it. Evaluations are of the saved weights."
)
GROUPED = (
    "Runs that differ in nothing but the seed are one row: mean ± half of the 95 % t-interval over the seeds. '(2 of 3)' "
    f"says how many of the runs have the number. {GROUPS_FILE} has these."
)
BANDS = (
    " A group of runs is the mean of its seeds, where all of them were measured, with its 95 % t-interval, a band; over the "
    "forget probability down to where all seeds came."
)
FIRST_RUN = " A group is shown by its first run."
FIRST_SEED = " Of a group, the mask of its first run."


@dataclass(frozen=True)
class Section:
    """
    Section of the document.

    Args:
        title (`str`): Heading.
        figures (`list[pathlib.Path]`, *optional*): Pictures, each as PNG and as PDF.
        text (`str`, *optional*): What the pictures show.
        tables (`list[TextTable]`, *optional*): Tables.
        remarks (`str`, *optional*): What else is to be said.
    """

    title: str
    figures: list[Path] = field(default_factory=list)
    text: str = ""
    tables: list[TextTable] = field(default_factory=list)
    remarks: str = ""

    def to_markdown(self) -> str:
        """Format the section; empty if there is nothing to show."""
        blocks = [f"![{self.title}]({file.name})" for file in self.figures if file.suffix == ".png"]
        blocks += [self.text] if self.figures else []
        for table in self.tables:
            blocks += [f"**{escaped(table.title)}**", table.to_markdown().rstrip()]
        blocks += [self.remarks] if self.remarks else []
        return "\n\n".join([f"## {self.title}", *blocks]) + "\n" if blocks else ""


def write_document(lines: Sequence[Run | Group], folder: Path) -> tuple[list[Path], list[TextTable]]:
    """
    Write the comparison of runs.

    Args:
        lines (`list[Run | Group]`): At least one run, or group of [`~comparison.groups.group_runs`].
        folder (`pathlib.Path`): Existing folder for `report.md`, the spreadsheets and the figures.

    Returns:
        `tuple[list[pathlib.Path], list[TextTable]]`: The files written, `report.md` first, and the tables in it.
    """
    with staging_folder(folder) as stage:
        sections = _sections(lines, stage)
        text = "\n".join(filter(None, (section.to_markdown() for section in sections)))
        (stage / DOCUMENT_FILE).write_text(f"# Unlearning runs\n\n{text}", encoding="utf-8")
        spreadsheets = write_spreadsheets(lines, stage)
        others = [file.name for section in sections for file in section.figures] + [file.name for file in spreadsheets]
        move_into_place(stage, folder, [*others, DOCUMENT_FILE])
    files = [folder / name for name in (DOCUMENT_FILE, *others)]
    return files, [table for section in sections for table in section.tables]


def _remarks(lines: Sequence[Run | Group]) -> str:
    groups = [line for line in lines if isinstance(line, Group)]
    said = {
        run.label: [*run.remarks, *([f"Verdict: {run.verdict}."] if run.verdict else [])] for run in runs_of(lines)
    }
    said |= {group.label: group.remarks for group in groups}
    remarks = "\n".join(f"- {escaped(label)}: {' '.join(texts)}" for label, texts in said.items() if texts)
    return "\n\n".join(filter(None, (remarks, GROUPED if groups else "", SPREADSHEETS)))


def _sections(lines: Sequence[Run | Group], folder: Path) -> list[Section]:
    levels = " and ".join(map(str, LEVELS))
    groups = [line for line in lines if isinstance(line, Group)]
    return [
        Section("Runs", tables=[setup_table(lines)], remarks=_remarks(lines)),
        Section(
            "Forgetting",
            plot_trajectories(lines, folder / TRAJECTORY_FILE) + plot_trade_off(lines, folder / TRADE_OFF_FILE),
            "Mean answer probability, exp(-loss per token), of some rows of each set, measured during training. First: over "
            "the optimizer steps. Second: retain probability over forget probability; at the same forget probability the "
            f"higher curve keeps more. The lines mark {levels}, where the table interpolates, at the first crossing. Beside "
            f"it, closer: what was kept there, and by the saved weights.{BANDS if groups else ''}",
            kept_tables(lines),
        ),
        Section("Evaluation", tables=evaluation_tables(lines)),
        Section(
            "Attacks",
            plot_relearning(lines, folder / RELEARNING_FILE),
            "Mean answer probability of the forget rows that relearning did not train on. The table, too, shows these "
            "rows after relearning.",
            attack_tables(lines),
        ),
        Section(
            "Masks",
            _plot_masks(lines, folder / MASKS_FILE),
            "Selected share of every layer and module. Colours follow its square "
            f"root, so that small shares are visible.{FIRST_SEED if groups else ''}",
        ),
        Section(
            "Memory",
            plot_memory(lines, folder / MEMORY_FILE),
            "Predicted peak by component, and what was measured. On a CPU that is the resident memory of the process, which "
            "also holds Python, its libraries and the rows; on a GPU it is what torch allocated, without the CUDA context."
            f"{FIRST_RUN if groups else ''}",
        ),
        Section("Runs of each group", tables=[group_table(group) for group in groups]),
    ]


def _plot_masks(lines: Sequence[Run | Group], path: Path) -> list[Path]:
    masked = [(line.label, line.members[0]) for line in lines if line.members[0].has_mask]
    if not masked:
        return []
    return write_figure(draw_masks((label, run.load_mask()) for label, run in masked), path, dpi=150)
