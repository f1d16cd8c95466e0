"""Tables of runs, one row per run or group of runs, for Markdown and for the terminal."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ..text import escaped
from .interval import Interval
from .runs import LEVELS, Compared, attack_label, words

# Suffix of a name in an evaluation -> title of the table with a column per set
BY_SET = {
    "prob": "Answer probability",
    "rougeL_recall": "ROUGE-L recall",
    "rougeL_recall_unicode": "ROUGE-L recall, any script",
    "truth_ratio": "Truth ratio",
    "exact_memorization": "Exact memorization",
    "extraction_strength": "Extraction strength",
    "exact_string": "Secrets told in full",
    "digits_right": "Digits of secrets told right",
    "exposure": "Exposure of secrets (bits)",
}
_ATTACKED = {"prob": "prob.", "rougeL_recall": "ROUGE-L"}
_HEADINGS = {
    "forget_quality": "forget quality (p)",
    "forget_quality_ks": "forget quality (KS)",
    "privleak": "PrivLeak (%)",
    "mia_loss_auc": "MIA AUC: loss",
    "mia_zlib_auc": "MIA AUC: zlib",
    "mia_min_k_auc": "MIA AUC: Min-K%",
    "mia_min_k_plus_plus_auc": "MIA AUC: Min-K%++",
}
_KL = "kl_to_base_"
_MAX_COLUMNS = 12  # that a terminal shows side by side


@dataclass(frozen=True)
class Column:
    """
    Column of a table.

    Args:
        key (`str`): Name of the number, see [`~comparison.runs.Compared.numbers`].
        heading (`str`): Text above the column.
        text (callable, *optional*): Formats the number.
        right (`bool`, *optional*, defaults to `True`): Whether cells are aligned to the right, as numbers are.
    """

    key: str
    heading: str
    text: Callable[[Any], str] = "{:.3f}".format
    right: bool = True

    def cell(self, numbers: Mapping[str, Any]) -> str:
        """Format the number of a run, or the mean of a group with its interval; empty if there is none."""
        value = numbers.get(self.key, "")
        if not isinstance(value, Interval):
            return value if value == "" else self.text(value)
        spread = "" if not value.half else f" ± {self.text(value.half)}"
        some = "" if value.count == value.total else f" ({value.count} of {value.total})"
        return f"{self.text(value.mean)}{spread}{some}"


@dataclass(frozen=True)
class TextTable:
    """
    Table with one row per run or group. Columns and runs without any value are left out. A missing value is an empty cell.

    Args:
        title (`str`): Title.
        columns (`list[Column]`): Columns after the first, which holds the labels.
        cells (`list[list[str]]`): Label and texts of each run.
    """

    title: str
    columns: list[Column]
    cells: list[list[str]]

    @classmethod
    def of(cls, title: str, lines: Sequence[tuple[str, Mapping[str, Any]]], columns: Iterable[Column]) -> "TextTable":
        """Make the table of `lines`, each a label and numbers by name."""
        columns = [column for column in columns if any(column.key in numbers for _, numbers in lines)]
        cells = [[label, *(column.cell(numbers) for column in columns)] for label, numbers in lines]
        return cls(title, columns, [line for line in cells if any(line[1:])])

    def to_markdown(self) -> str:
        """Format the table in GitHub's Markdown."""
        lines = [["run", *(column.heading for column in self.columns)], *self.cells]
        right = [False, *(column.right for column in self.columns)]
        return markdown_table([[escaped(cell) for cell in line] for line in lines], right)

    def to_rich(self) -> Table:
        """Format the table for the terminal. Of many columns, each becomes a line: squeezed, none could be read."""
        table = Table(title=self.title)
        table.add_column("run", no_wrap=True)
        if len(self.columns) > max(_MAX_COLUMNS, len(self.cells)):
            labels, *columns = zip(*self.cells, strict=True)
            for label in labels:
                table.add_column(label)
            for column, cells in zip(self.columns, columns, strict=True):
                table.add_row(column.heading, *cells)
            return table
        for column in self.columns:
            table.add_column(column.heading, justify="right" if column.right else "left")
        for line in self.cells:
            table.add_row(*line)
        return table


def markdown_table(lines: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """
    Format a table in GitHub's Markdown, padded so that it reads well as plain text.

    Args:
        lines (`list[list[str]]`): Cells of every line, the headings first. They are Markdown; bars are escaped here.
        right (`list[bool]`): Which columns are aligned to the right.
    """
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    rule = ["-" * (width - 1) + ":" if r else "-" * width for width, r in zip(widths, right, strict=True)]
    padded = [[c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in [padded[0], rule, *padded[1:]])


def metric_columns(keys: Iterable[str]) -> list[Column]:
    """Make columns for numbers of evaluations, with full headings: numbers per set first, metric by metric."""
    keys = list(keys)
    by_set = [
        Column(key, f"{title}: {words(key.removesuffix(f'_{metric}'))}")
        for metric, title in BY_SET.items()
        for key in keys
        if key.endswith(f"_{metric}")
    ]
    rest = set(keys) - {column.key for column in by_set}
    return by_set + [_overall(key) for key in keys if key in rest]


def setup_table(lines: Sequence[Compared]) -> TextTable:
    """Make the table of settings and peak memory. Settings beside the most common ones are shown where they differ."""
    common = [
        Column("objective", "objective", str, right=False),
        Column("base_model", "base model", lambda name: "/".join(Path(name).parts[-2:]), right=False),
        Column("mask_score", "mask", str, right=False),
        Column("mask_density", "density", "{:.3g}".format),
        Column("learning_rate", "learning rate", "{:g}".format),
    ]
    course = [
        Column("steps", "steps", _count),
        Column("saved_step", "step saved", _count),
        Column("attribution_peak_bytes", "peak of attribution (GB)", _gigabytes),
        Column("training_peak_bytes", "peak of training (GB)", _gigabytes),
    ]
    seeds = {run.seed for line in lines for run in line.members}
    differing = [Column("seeds", "seed", str)] if len(seeds) > 1 else []
    differing += _differing(lines, {column.key for column in common})
    rows = [(line.label, line.numbers() | {"seeds": _seeds(line)}) for line in lines]
    return TextTable.of("Options and peak memory", rows, [*common, *differing, *course])


def _differing(lines: Sequence[Compared], known: Collection[str]) -> list[Column]:
    """Make columns for further settings in which trained runs differ, those of the mask first."""
    settings = [line.settings for line in lines if "objective" in line.settings]
    names = sorted(_unique(*settings), key=lambda name: not name.startswith("mask_"))
    columns = []
    for name in (name for name in names if name != "seed" and name not in known):
        values = [each.get(name) for each in settings]
        if len(set(map(str, values))) > 1:
            heading = words(name if name == "mask_seed" else name.removeprefix("mask_"))
            columns.append(Column(name, heading, _setting, right=not any(isinstance(value, str) for value in values)))
    return columns


def _seeds(line: Compared) -> str:
    return ", ".join(str(run.seed) for run in line.members if run.seed is not None)


def group_table(group: Compared) -> TextTable:
    """Make the table of the runs of a group: answer probabilities as in [`kept_tables`], by seed."""
    lines = [(run.label, run.numbers() | {"seeds": _seeds(run)}) for run in group.members]
    return TextTable.of(group.label, lines, [Column("seeds", "seed", str), *_kept_columns([group])])


def kept_tables(lines: Sequence[Compared]) -> list[TextTable]:
    """Make the table of answer probabilities of the saved weights, and where the forget probability passed each of `LEVELS`."""
    title = (
        f"Of the saved weights, and on the way, where the forget probability passes {' and '.join(map(str, LEVELS))}"
    )
    return _with_columns([TextTable.of(title, _numbers(lines), _kept_columns(lines))])


def _kept_columns(lines: Sequence[Compared]) -> list[Column]:
    sets = _unique(*(line.sets for line in lines))
    columns = [Column(f"final_{name}", f"{words(name)}, saved") for name in sets]
    for level in LEVELS:
        columns.append(Column(f"step_at_{level}", f"step at {level}", "{:.1f}".format))
        columns += [Column(f"{name}_at_{level}", f"{words(name)} at {level}") for name in sets]
    return columns


def evaluation_tables(lines: Sequence[Compared]) -> list[TextTable]:
    """Make the table of overall metrics, then one per metric of `BY_SET`, with a column per set."""
    measured = [(line.label, line.measured()) for line in lines]
    keys = _unique(*(numbers for _, numbers in measured))
    by_set = {metric: [key for key in keys if key.endswith(f"_{metric}")] for metric in BY_SET}
    others = [key for key in keys if not any(key in members for members in by_set.values())]
    tables = [TextTable.of("Overall", measured, [_overall(key) for key in others])]
    for metric, members in by_set.items():
        columns = [Column(key, words(key.removesuffix(f"_{metric}"))) for key in members]
        tables.append(TextTable.of(BY_SET[metric], measured, columns))
    return _with_columns(tables)


def attack_tables(lines: Sequence[Compared]) -> list[TextTable]:
    """Make the table of answer probability and ROUGE-L of every set, without and under each attack."""
    attacked = [line for line in lines if line.attacks]
    rows = [(line.label, {"attack": "none", **line.measured()}) for line in attacked]
    for attack in _unique(*(line.attacks for line in attacked)):
        members = (line for line in attacked if attack in line.attacks)
        rows += [
            (line.label, {"attack": attack_label(attack, line.attacks[attack]), **line.measured(attack)})
            for line in members
        ]
    keys = _unique(*(content for line in attacked for content in line.attacks.values()))
    columns = [Column("attack", "attack", str, right=False)]
    for metric, heading in _ATTACKED.items():
        members = [key for key in keys if key.endswith(f"_{metric}")]
        columns += [Column(key, f"{words(key.removesuffix(f'_{metric}'))} {heading}") for key in members]
    return _with_columns([TextTable.of("Answer probability and ROUGE-L recall under attack", rows, columns)])


def _overall(key: str) -> Column:
    if key.startswith(_KL):
        return Column(key, f"KL(base ‖ model): {words(key.removeprefix(_KL))} (nats)", _three_digits)
    text = "{:.2%}".format if key == "weights_changed" else _three_digits
    return Column(key, _HEADINGS.get(key, words(key)), text)


def _with_columns(tables: Iterable[TextTable]) -> list[TextTable]:
    return [table for table in tables if table.columns]


def _numbers(lines: Sequence[Compared]) -> list[tuple[str, dict[str, Any]]]:
    return [(line.label, line.numbers()) for line in lines]


def _unique(*groups: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(key for group in groups for key in group))


def _count(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _setting(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f}"


def _three_digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")
