"""The comparison of runs as one Markdown file with figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..attribution.report import plot_masks
from ..files.atomic import move_into_place, staging_folder
from ..text import escaped
from .figures import plot_relearning, plot_trajectories
from .runs import LEVELS, Run
from .tables import TextTable, attack_tables, evaluation_tables, kept_tables, setup_table

DOCUMENT_FILE = "report.md"
TRAJECTORY_FILE = "trajectory.png"
RELEARNING_FILE = "relearning.png"
MASKS_FILE = "masks.png"


@dataclass(frozen=True)
class Section:
    """
    Section of the document.

    Args:
        title (`str`): Heading.
        figure (`pathlib.Path`, *optional*): Picture.
        text (`str`, *optional*): What the picture shows.
        tables (`list[TextTable]`, *optional*): Tables.
        remarks (`str`, *optional*): What else is to be said.
    """

    title: str
    figure: Path | None = None
    text: str = ""
    tables: list[TextTable] = field(default_factory=list)
    remarks: str = ""

    def to_markdown(self) -> str:
        """Format the section; empty if there is nothing to show."""
        blocks = [f"![{self.title}]({self.figure.name})", self.text] if self.figure else []
        for table in self.tables:
            blocks += [f"**{table.title}**", table.to_markdown().rstrip()]
        blocks += [self.remarks] if self.remarks else []
        return "\n\n".join([f"## {self.title}", *blocks]) + "\n" if blocks else ""


def write_document(runs: Sequence[Run], folder: Path) -> tuple[list[Path], list[TextTable]]:
    """
    Write the comparison of runs.

    Args:
        runs (`list[Run]`): At least one run.
        folder (`pathlib.Path`): Existing folder for `report.md` and the figures.

    Returns:
        `tuple[list[pathlib.Path], list[TextTable]]`: The files written, `report.md` first, and the tables in it.
    """
    with staging_folder(folder) as stage:
        sections = _sections(runs, stage)
        text = "\n".join(filter(None, (section.to_markdown() for section in sections)))
        (stage / DOCUMENT_FILE).write_text(f"# Unlearning runs\n\n{text}", encoding="utf-8")
        figures = [section.figure.name for section in sections if section.figure]
        move_into_place(stage, folder, [*figures, DOCUMENT_FILE])
    files = [folder / name for name in (DOCUMENT_FILE, *figures)]
    return files, [table for section in sections for table in section.tables]


def _remarks(runs: Sequence[Run]) -> str:
    sentences = {run.label: [*run.remarks, *([f"Verdict: {run.verdict}."] if run.verdict else [])] for run in runs}
    return "\n".join(f"- {escaped(label)}: {' '.join(said)}" for label, said in sentences.items() if said)


def _sections(runs: Sequence[Run], folder: Path) -> list[Section]:
    masked = [run for run in runs if run.has_mask]
    levels = " and ".join(map(str, LEVELS))
    return [
        Section("Runs", tables=[setup_table(runs)], remarks=_remarks(runs)),
        Section(
            "Forgetting",
            plot_trajectories(runs, folder / TRAJECTORY_FILE),
            "Mean answer probability, exp(-loss per token), of some rows of each set. Left: over the optimizer steps. "
            "Right: retain probability over forget probability; at the same forget probability the higher curve "
            f"keeps more. The lines mark {levels}, where the table interpolates, at the first crossing.",
            kept_tables(runs),
        ),
        Section("Evaluation", tables=evaluation_tables(runs)),
        Section(
            "Attacks",
            plot_relearning(runs, folder / RELEARNING_FILE),
            "Mean answer probability of the forget rows that relearning did not train on. The table, too, shows these "
            "rows after relearning.",
            attack_tables(runs),
        ),
        Section(
            "Masks",
            plot_masks(((run.label, run.load_mask()) for run in masked), folder / MASKS_FILE) if masked else None,
            "Selected share of every layer and module. Colours follow its square root, so that small shares are visible.",
        ),
    ]
