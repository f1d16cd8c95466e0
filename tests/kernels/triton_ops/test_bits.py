"""Packed masks of the kernels, against numpy and the specification."""

import pytest
import torch

import wagle_kernels

from ..helpers import DEVICE, packed_by_numpy, random_bits, sizes
from .addresses import FAR, aligned, far_copy, far_masks, misaligned
from .marks import interpreter_only, masked_lanes

pytestmark = masked_lanes


@pytest.mark.parametrize(
    ("density", "numel"), [(density, numel) for density in (0.0, 0.5, 1.0) for numel in sizes(density == 0.5)]
)
def test_packing_unpacking_and_counting_are_numpys(density, numel):
    bits = random_bits(numel, density, seed=numel)
    expected = torch.from_numpy(packed_by_numpy(bits.numpy()))
    for place in (aligned, misaligned):
        packed = wagle_kernels.pack(place(bits), backend="triton")
        assert torch.equal(packed.cpu(), expected)
        assert torch.equal(wagle_kernels.unpack(place(expected), numel, backend="triton").cpu(), bits)
        assert wagle_kernels.popcount(place(expected), backend="triton") == int(bits.sum())
    out = torch.full_like(packed, 0xAA)
    assert wagle_kernels.pack(bits.to(DEVICE), out=out, backend="triton") is out
    assert torch.equal(out.cpu(), expected)


@interpreter_only
@pytest.mark.parametrize("numel", [1000, 1001])
def test_packing_reaches_beyond_32_bits(numel, last_program):
    bits = random_bits(numel)
    packed, _ = far_masks(numel)
    wagle_kernels.pack(far_copy(bits), out=packed, backend="triton")
    assert torch.equal(packed[FAR // 8 :], wagle_kernels.pack(bits))
    assert not packed[: numel // 8].any()
