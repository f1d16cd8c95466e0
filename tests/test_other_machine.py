"""The plugin `tests/support/other_machine.py`, in a process of its own: it replaces operations of torch for good."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKS = """
import torch

torch.manual_seed(0)
a, b = torch.randn(9, 64), torch.randn(64, 5)
plain = a @ b, a.exp(), a.sum(1), a.softmax(1)
import tests.support.other_machine

other = a @ b, a.exp(), a.sum(1), a.softmax(1)
for x, y in zip(plain, other):
    assert not torch.equal(x, y)
    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
assert torch.equal(a @ b, other[0])  # the same call
assert not torch.equal(a[:1] @ b, other[0][:1])  # another batch
assert not torch.equal(torch.cat([a, a[:1]]).sum(1)[:9], other[2])
whole = torch.arange(64.0).view(8, 8)
assert torch.equal(whole @ whole, (whole.long() @ whole.long()).float()) and whole.sum() == 2016
assert (torch.randn(3, 4).bfloat16() @ torch.randn(4, 2).bfloat16()).dtype == torch.bfloat16
assert torch.ones(3).sum(dtype=torch.float64).dtype == torch.float64 and torch.arange(3).exp().dtype == torch.float32
inputs = torch.randn(2, 6, requires_grad=True)
torch.nn.functional.cross_entropy(inputs, torch.tensor([1, 2])).backward()
assert inputs.grad.isfinite().all()
"""


@pytest.mark.parametrize("seed", ["0", "5"])
def test_other_shapes_round_otherwise_and_the_same_call_alike(seed):
    environment = os.environ | {"OTHER_MACHINE": seed, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CHECKS], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
