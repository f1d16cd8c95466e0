"""Read the file of a delta, which a stranger may have written: all but the values is checked before it is used."""

import json
import math
import os

import torch
from torch import Tensor

from ..files.tensor_file import DTYPES, TensorFile, is_name
from ..masks.info import MaskInfo
from ..masks.mask import parse_shapes
from ..masks.positions import CODINGS, count, decode

FORMAT_VERSION = "2"


class DeltaFile(TensorFile):
    """
    Content of a delta's file. The constructor raises a `ValueError` if the file is not a delta, or is damaged.

    For every parameter with selected weights, the file holds the code of their positions, `gaps:NAME` or `bits:NAME`,
    and their values `new:NAME`. If the old values were kept, it also holds `old:NAME`.

    Args:
        path (`str` or `os.PathLike`): The file.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        header = dict(self.metadata)
        header.pop("format", None)
        if header.pop("format_version", None) != FORMAT_VERSION or "base_fingerprint" not in header:
            raise ValueError(f"{self.path} is not a wagle delta of format version {FORMAT_VERSION}.")
        self.base_fingerprint = header.pop("base_fingerprint")
        shapes, dtypes, declared = (header.pop(name, None) for name in ("shapes", "dtypes", "k"))
        self.info = MaskInfo.from_metadata(header, self.path)
        self.shapes = parse_shapes(self.path, shapes)
        self.dtypes = self._parse_dtypes(dtypes)
        self.has_old = any(key.startswith("old:") for key in self)
        self.kinds = ("new", "old") if self.has_old else ("new",)
        self.codings = {name: self._coding(name) for name in self.shapes}
        if len(self) != len(self.shapes) * (1 + len(self.kinds)):
            raise ValueError(f"{self.path}: the header does not declare all parameters whose values the file holds.")
        self.counts = {name: self._count(name) for name in self.shapes}
        total = sum(self.counts.values())
        if declared != str(total):
            raise ValueError(
                f"{self.path}: the header declares k = {declared!r:.40}, but there are {total} positions."
            )

    def code(self, name: str) -> tuple[str, Tensor]:
        """Coding and code of a parameter's positions."""
        return self.codings[name], self[f"{self.codings[name]}:{name}"]

    def bits(self, name: str) -> Tensor:
        """Packed mask of a parameter."""
        return decode(*self.code(name), math.prod(self.shapes[name]))

    def _parse_dtypes(self, text: str | None) -> dict[str, torch.dtype]:
        try:
            dtypes = {name: DTYPES[dtype] for name, dtype in json.loads(text or "").items()}
            valid = bool(dtypes) and self.shapes.keys() <= dtypes.keys() and all(map(is_name, dtypes))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            valid = False
        if not valid:
            raise ValueError(
                f"{self.path}: the header holds no valid dtypes of all parameters; the file is damaged or hostile."
            )
        return dtypes

    def _coding(self, name: str) -> str:
        """Coding of a parameter's positions. Raise a `ValueError` unless the file holds one, and all values."""
        found = [coding for coding in CODINGS if f"{coding}:{name}" in self]
        if len(found) != 1 or any(f"{kind}:{name}" not in self for kind in self.kinds):
            raise ValueError(f"{self.path}: '{name}' must have exactly one code of positions, and all values.")
        return found[0]

    def _count(self, name: str) -> int:
        """
        Number of selected weights of a parameter. Raise a `ValueError` unless the file holds as many values of the
        declared dtype.
        """
        try:
            # Counted without decoding: until a model confirms the shapes, they may be made up to exhaust the memory
            selected = count(*self.code(name), math.prod(self.shapes[name]))
        except ValueError as error:
            raise ValueError(f"{self.path}: '{name}' {error}.") from error
        for key in (f"{kind}:{name}" for kind in self.kinds):
            if self.shape(key) != (selected,):
                raise ValueError(
                    f"{self.path}: '{name}' has {selected} positions, but values of shape {self.shape(key)}."
                )
            if self.dtype(key) != self.dtypes[name]:
                raise ValueError(f"{self.path}: the values of '{name}' are not {self.dtypes[name]} as declared.")
        return selected
