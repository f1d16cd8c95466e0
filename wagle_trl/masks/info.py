"""Records of how a mask was made, and their form in the header of a mask file."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..files.hub_file import public_base
from ..files.reading import parse_json
from ..files.schemas import MaskOverlaps, Patterns, Versions

UNKNOWN_REVISION = "None"
"""Revision in files, of a base model that has a name, but no known commit."""


@dataclass(frozen=True)
class MaskInfo:
    """
    How a mask was made. `None` means not recorded; a mask that was merged or made by hand records little.

    Args:
        score (`str`, *optional*): Attribution score, or `"merged"` if several masks were merged.
        scale (`float`, *optional*): Gamma or damping in the formula of the score.
        gamma (`str`, *optional*), eps (`float`, *optional*), seed (`int`, *optional*): Options of the score.
        scope, exclude (`tuple[str, ...]`, *optional*): Patterns of parameter names; `()` if none were given.
        fingerprint (`str`, *optional*): [`~masks.fingerprint.model_fingerprint`] of the base model.
        versions (`dict[str, str]`, *optional*): Package versions, by name.
        base_model (`str`, *optional*): Name or path of the base model.
        base_revision (`str`, *optional*): Its commit on the Hub, or [`UNKNOWN_REVISION`].
        threshold (`float`, *optional*): Lowest score that was selected.
        jaccard (`dict[str, float | None]`, *optional*): As of [`~attribution.report.baseline_overlaps`].
        merged (`str`, *optional*): What was merged.
        others (`dict[str, str]`): What else the header of a file held, which travels on as it is.
    """

    score: str | None = None
    scale: float | None = None
    gamma: str | None = None
    eps: float | None = None
    seed: int | None = None
    scope: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    fingerprint: str | None = None
    versions: dict[str, str] | None = None
    base_model: str | None = None
    base_revision: str | None = None
    threshold: float | None = None
    jaccard: dict[str, float | None] | None = None
    merged: str | None = None
    others: dict[str, str] = field(default_factory=dict)

    @property
    def known_revision(self) -> str | None:
        """Commit of the base model, if it is known."""
        return None if self.base_revision == UNKNOWN_REVISION else self.base_revision

    def public(self, base_model: str | None = None, is_local: bool | None = None) -> "MaskInfo":
        """
        Copy the record without private facts: the path of a base model in a local folder.

        Args:
            base_model (`str`, *optional*), is_local (`bool`, *optional*): As in [`~files.hub_file.public_base`].
        """
        name, revision = public_base(self.base_model, self.base_revision, base_model, is_local)
        return replace(self, base_model=name, base_revision=revision)

    def to_metadata(self) -> dict[str, str]:
        """Convert the record to header entries, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "others"}
        return self.others | {name: _text_of(value) for name, value in values.items() if value is not None}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: str | os.PathLike) -> "MaskInfo":
        """
        Read a record from header entries. An entry that [`to_metadata`] would write differently is kept in `others`.

        Args:
            metadata (`dict[str, str]`): Header entries, by name.
            path (`str` or `os.PathLike`): File to name in the `ValueError` if `jaccard` or `versions` are malformed.
        """
        values: dict[str, Any] = {
            name: parse_json(metadata[name], schema, f"{path}: {name}")
            for name, schema in (("jaccard", MaskOverlaps), ("versions", Versions))
            if name in metadata
        }
        names = {item.name for item in fields(cls)} - {"others", *values}
        for name in names & metadata.keys():
            with suppress(ValueError):
                value = _PARSERS.get(name, str)(metadata[name])
                if _text_of(value) == metadata[name]:
                    values[name] = value
        return cls(**values, others={name: text for name, text in metadata.items() if name not in values})


def _text_of(value: Any) -> str:
    if isinstance(value, tuple):
        return json.dumps(value or None)  # as in MaskConfig: no patterns are null
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(parse_json(text, Patterns, "") or ())


_PARSERS = {"scale": float, "eps": float, "seed": int, "scope": _patterns, "exclude": _patterns, "threshold": float}
