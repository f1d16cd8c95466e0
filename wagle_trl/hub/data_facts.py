"""The facts of a card about the rows of a run: how many, of which data sets, with which digests."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..data.lengths import AnswerTokens
from ..files.schemas import CountedTokens
from ..text import HUB_ID, code, escaped

_LABELS = {"forget": "Rows to forget", "retain": "Rows to keep", "train": "Rows trained on"}


@dataclass(frozen=True)
class DataFacts:
    """
    Facts about the sets of rows.

    Args:
        sets (`dict[str, dict]`): Description of every set, see [`~data.provenance.describe_rows`].
        answer_tokens (`dict[str, dict]`): Numbers of answer tokens of every set, see [`~data.lengths.AnswerTokens`].
        hashed (`bool`): Whether data sets are named by their digests only.
    """

    sets: Mapping[str, Mapping[str, Any]]
    answer_tokens: Mapping[str, CountedTokens]
    hashed: bool

    @property
    def rows(self) -> dict[str, str]:
        """Every row set in a line, by its label."""
        return {
            _LABELS.get(name, escaped(name)): self._describe(rows) + self._cut(name)
            for name, rows in self.sets.items()
        }

    def _cut(self, name: str) -> str:
        """What of the answers took no part, because the rows were too long."""
        counted = self.answer_tokens.get(name)
        if counted is None or not counted["rows_cut"]:
            return ""
        return f"; {AnswerTokens(**counted)}"

    def _describe(self, rows: Mapping[str, Any]) -> str:
        parts = [f"{rows['rows']:,} row{'s' * (rows['rows'] != 1)}"]
        if rows.get("source") and not self.hashed:
            parts[0] += f" of {self._source(rows)}"
            parts += [f"{key} {code(rows[key])}" for key in ("config", "split", "revision") if rows.get(key)]
        if self._has_plain_digest(rows):
            parts.append(f"SHA-256 {code(rows['sha256'])}")
        if rows.get("hmac_sha256"):
            parts.append(f"HMAC-SHA-256 {code(rows['hmac_sha256'])}")
        return ", ".join(parts)

    def _has_plain_digest(self, rows: Mapping[str, Any]) -> bool:
        """Whether the rows are public. A plain digest of others confirms guesses, and of hashed ones reveals the name."""
        return bool(rows.get("sha256") and rows.get("revision") and not self.hashed)

    def _source(self, rows: Mapping[str, Any]) -> str:
        source = rows["source"]
        is_on_hub = rows.get("revision") and HUB_ID.fullmatch(source)
        return f"[{source}](https://huggingface.co/datasets/{source})" if is_on_hub else code(os.path.basename(source))

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets on the Hub, unless they are hashed."""
        sources = [rows.get("source") or "" for rows in self.sets.values() if rows.get("revision") and not self.hashed]
        return [source for source in dict.fromkeys(sources) if HUB_ID.fullmatch(source)]

    @property
    def has_digests(self) -> bool:
        return self.has_keyed_digests or any(map(self._has_plain_digest, self.sets.values()))

    @property
    def has_keyed_digests(self) -> bool:
        return any(rows.get("hmac_sha256") for rows in self.sets.values())
