"""When a test of the kernels runs, and what it may warn of."""

import pytest
import torch

from ..helpers import INTERPRETED

masked_lanes = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy, where lanes are masked
interpreter_only = pytest.mark.skipif(not INTERPRETED, reason="moves the programs of Triton's interpreter")
needs_48_gb = pytest.mark.skipif(
    INTERPRETED or torch.cuda.get_device_properties(0).total_memory < 48e9, reason="needs a GPU with 48 GB"
)
