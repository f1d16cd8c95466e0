"""Packed masks of the specification, against numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import wagle_kernels
from wagle_kernels import CHUNK
from wagle_kernels.reference import chunking

from ..helpers import random_bits


@given(numel=st.integers(0, 300), density=st.sampled_from([0.0, 0.03, 0.5, 1.0]), seed=st.integers(0, 2**31))
def test_packing_is_numpys_little_bit_order_and_unpacking_undoes_it(numel, density, seed):
    bits = random_bits(numel, density, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking.chunks, "__defaults__", (64,))
        packed = wagle_kernels.pack(bits)
        assert np.array_equal(packed.numpy(), np.packbits(bits.numpy(), bitorder="little"))
        assert torch.equal(wagle_kernels.unpack(packed, numel), bits)
        assert wagle_kernels.popcount(packed) == int(bits.sum())


@pytest.mark.parametrize("offset", [1, 3, 8])
def test_packing_takes_views_at_any_storage_offset(offset):
    bits = random_bits(1000)[offset:]
    assert np.array_equal(wagle_kernels.pack(bits).numpy(), np.packbits(bits.numpy(), bitorder="little"))


def test_popcount_is_right_for_every_byte_and_over_chunks():
    for byte in range(256):
        assert wagle_kernels.popcount(torch.tensor([byte], dtype=torch.uint8)) == byte.bit_count()
    assert wagle_kernels.popcount(torch.full((CHUNK + 5,), 0xFF, dtype=torch.uint8)) == 8 * (CHUNK + 5)
