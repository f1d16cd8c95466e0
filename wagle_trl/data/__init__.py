"""Rows: loading, formats, pairing, provenance."""

from .formats import to_trl
from .rows import load_rows
from .tofu import load_tofu

__all__ = ["load_rows", "load_tofu", "to_trl"]
