"""Fixtures for the tests of the kernels, which also run alone: `pytest --confcutdir=tests/kernels tests/kernels`."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: it is read when a kernel is decorated

from .allocations import allocations  # noqa: F401

torch.set_num_threads(1)
