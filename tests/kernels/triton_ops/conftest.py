"""Fixtures for the tests of the kernels, which need Triton."""

from importlib.util import find_spec

import pytest

from ..helpers import walk_tiles_in_two_steps

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]


@pytest.fixture(autouse=True)
def few_steps(request, monkeypatch):
    """Tiles in few steps, but for a test that asks for `as_launched`."""
    if "as_launched" not in request.fixturenames:
        walk_tiles_in_two_steps(monkeypatch)


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
