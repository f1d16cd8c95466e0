"""Fixtures for the tests of the kernels, which need Triton."""

from importlib.util import find_spec

import pytest

from wagle_kernels import TILE

from ..helpers import INTERPRETED

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]


@pytest.fixture(autouse=True)
def few_steps(request, monkeypatch):
    """In the interpreter a step costs the same for any width: walk a tile in two steps of the same code."""
    if not INTERPRETED or "as_launched" in request.fixturenames:
        return
    from wagle_kernels.triton_ops import compaction, scoring

    for options in (compaction.BY_BITS, scoring.NARROW):
        monkeypatch.setitem(options, "ROWS", TILE // 16)
        monkeypatch.setitem(options, "STEPS", 2)
    monkeypatch.setitem(compaction.BY_INDICES, "CHUNK", TILE // 2)


@pytest.fixture
def as_launched():
    """Steps as the package launches them, also in the interpreter."""


@pytest.fixture
def last_program(monkeypatch):
    """Run only the last program of every launch."""
    from triton.runtime import interpreter

    run = interpreter.GridExecutor.__call__

    def run_last(self, *args, **kwargs):
        last = self.grid[0] - 1
        monkeypatch.setattr(interpreter.interpreter_builder, "set_grid_idx", lambda x, y, z: None)
        monkeypatch.setattr(interpreter.interpreter_builder, "grid_idx", (last, 0, 0), raising=False)
        self.grid = (1,)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", run_last)
