"""Fixtures for the tests of the kernels, which also run alone: `pytest --confcutdir=tests/kernels tests/kernels`."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: it is read when a kernel is decorated

from wagle_trl.memory.allocations import Allocations

torch.set_num_threads(1)


@pytest.fixture
def allocations() -> Allocations:
    """Context manager that records the memory which the ops in it allocate."""
    return Allocations()
