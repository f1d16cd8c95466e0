"""Fixtures for the tests of the specification."""

import pytest

from wagle_kernels import CHUNK, TILE
from wagle_kernels.reference import chunking, compaction


@pytest.fixture(params=[64, CHUNK], ids=["many chunks", "one chunk"])
def chunk(request, monkeypatch):
    """Work in pieces of the default size, and of one that every input above 64 elements, or of two tiles, crosses."""
    monkeypatch.setattr(chunking.chunks, "__defaults__", (request.param,))
    if request.param < CHUNK:
        monkeypatch.setattr(compaction, "BLOCK_SELECTED", TILE)
        monkeypatch.setattr(compaction, "BLOCK_TILES", 1)
    return request.param
