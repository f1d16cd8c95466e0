"""The model and the rows that a trainer was given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from datasets import Dataset

from ..data.provenance import describe_rows, model_commit


@dataclass
class RunInputs:
    """
    What a trainer was given, for its report. Rows are described when the report is written, as hashing many takes time.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]): The model, or its name.
        revision (`str`, *optional*): Revision to load, where a name was given.
        rows (`dict[str, datasets.Dataset]`): The rows of every set, as they came.
    """

    model: Any
    revision: str | None
    rows: Mapping[str, Dataset]
    _described: dict[bool, dict[str, dict[str, Any]]] = field(default_factory=dict, init=False)

    def data(self, folder: str, hashed: bool) -> dict[str, dict[str, Any]]:
        """[`~data.provenance.describe_rows`] of every set."""
        if hashed not in self._described:
            self._described[hashed] = {
                name: describe_rows(rows, folder, hashed=hashed) for name, rows in self.rows.items()
            }
        return self._described[hashed]

    @cached_property
    def base_revision(self) -> str | None:
        """Commit of the model on the Hub. A loaded model knows its commit only before transformers 5.23."""
        if isinstance(self.model, str):
            return model_commit(self.model, self.revision)
        return getattr(self.model.config, "_commit_hash", None)
