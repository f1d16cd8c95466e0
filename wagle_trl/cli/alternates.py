"""`wagle alternates`: forget rows with other answers, which the model invents itself."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..data.alternates import ALTERNATE
from ..data.formats import without_nulls
from ..data.rows import load_rows
from ..evaluation.alternates import AlternateOptions, generate_alternates
from ..files.atomic import atomic_path, check_writable
from ..files.run_folder import ALTERNATE_ROWS_FILE, ALTERNATES_FILE
from ..text import printable
from .arguments import load_tokenizer
from .eval_model import PlainModel
from .going_on import advising, command_line
from .output import Output, key_value_table
from .parser import parse

logger = logging.get_logger(__name__)


@dataclass
class AlternatesArguments:
    """
    Options that name the rows.

    Args:
        forget_dataset (`str`): As in [`~wagle_trl.data.rows.load_rows`].
        output_dir (`str`): Folder for the rows with their alternates.
    """

    forget_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Forget rows: a Hub data set, a folder or a file, as in `wagle unlearn`, with question/answer, "
            "prompt/completion or messages."
        },
    )
    output_dir: str = field(
        default="wagle-alternates",
        metadata={
            "help": f"Folder for {ALTERNATE_ROWS_FILE}, the rows with a column `{ALTERNATE}`, and for what is not finished: the "
            "same command again goes on."
        },
    )

    def load(self) -> list[dict[str, Any]]:
        """Load the rows, without what `datasets` fills in."""
        if self.forget_dataset is None:
            raise ValueError("No data: give --forget_dataset a Hub name, a folder or a file.")
        rows = load_rows(self.forget_dataset)
        if ALTERNATE in rows.column_names:
            raise ValueError(
                f"'{printable(self.forget_dataset, 300)}' has a column '{ALTERNATE}' already; train on it, or remove the column."
            )
        return [without_nulls(row) for row in rows]


def run(argv: list[str], command: str) -> Output:
    args, options, model_args = parse([AlternatesArguments, AlternateOptions, PlainModel], argv, command)
    rows = args.load()
    folder = Path(args.output_dir)
    if (folder / ALTERNATE_ROWS_FILE).exists() and not (folder / ALTERNATES_FILE).exists():
        raise ValueError(
            f"'{printable(folder, 300)}' holds another {ALTERNATE_ROWS_FILE}; choose another --output_dir, as nothing is "
            "overwritten."
        )
    tokenizer, model = load_tokenizer(model_args, model_args.trust_remote_code), model_args.load()
    check_writable(args.output_dir)  # after loading: a model that is missing leaves no folder
    again = f"To go on where it stopped, the same command again: {command_line(command, argv)}"
    with advising(lambda error: None if isinstance(error, ValueError) else again):
        alternates = generate_alternates(model, tokenizer, rows, options, folder / ALTERNATES_FILE)
    if not (folder / ALTERNATE_ROWS_FILE).exists():  # it would be the same, but for what was edited
        _write(folder / ALTERNATE_ROWS_FILE, rows, alternates)
    return _output(folder, alternates, options)


def _write(path: Path, rows: Sequence[dict[str, Any]], alternates: Sequence[list[str]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row, texts in zip(rows, alternates, strict=True):
            file.write(json.dumps(row | {ALTERNATE: texts}, ensure_ascii=False, default=str) + "\n")


def _output(folder: Path, alternates: Sequence[list[str]], options: AlternateOptions) -> Output:
    """Count what was found; rows without any alternate cannot be trained on, so the exit code is 1."""
    fewer = sum(len(texts) < options.num_alternates for texts in alternates)
    without = [row for row, texts in enumerate(alternates) if not texts]
    content = {
        "output_dir": str(folder),
        "forget_dataset": str(folder / ALTERNATE_ROWS_FILE),
        "rows": len(alternates),
        "alternates": sum(map(len, alternates)),
        "rows_with_fewer": fewer,
        "rows_without": len(without),
    }
    if fewer:
        logger.warning(
            f"{fewer} of {len(alternates)} rows have fewer than {options.num_alternates} alternates: the model repeated itself, "
            "the answer or nothing; a higher --temperature gives more."
        )
    if without:
        logger.warning(
            f"{len(without)} rows have no alternate (first: row {without[0]}); write one in {ALTERNATE_ROWS_FILE}, or remove them."
        )
    table = key_value_table(f"Alternates: {folder}", {name: content[name] for name in list(content)[2:]})
    return Output(content, [table, f"Written: {content['forget_dataset']}"], exit_code=int(bool(without)))
