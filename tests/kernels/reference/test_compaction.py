"""Compress and scatter of the specification, against boolean indexing."""

import pytest
import torch

import wagle_kernels
from wagle_kernels import TILE

from ..helpers import CODINGS, DTYPES, TILED_SIZES, bits_of, make_layout, masks_of, random_patterns, tensors

NUMELS = [*TILED_SIZES, 0]  # of the tensors of one layout


@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("coding", CODINGS)
def test_compress_gathers_in_rising_order(coding, out_dtype, dtype, density, chunk):
    masks = masks_of(density, NUMELS)
    layout = make_layout(masks, indexed=coding == "indices")
    for tensor, mask in enumerate(masks):
        dense = tensors(mask.numel(), dtype, seed=tensor)[0]
        expected = dense[mask].to(out_dtype)
        out = torch.full_like(expected, 3.0)
        assert wagle_kernels.compress(dense, layout, tensor, out) is out
        assert torch.equal(out, expected)
        wagle_kernels.compress(dense, layout, tensor, out, accumulate=True)
        assert torch.equal(out, (expected.float() + dense[mask].float()).to(out_dtype))


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("coding", CODINGS)
def test_compress_leaves_partial_sums_of_the_squares_of_its_result(coding, dtype, accumulate, chunk):
    masks = [*masks_of(0.1, NUMELS), torch.arange(3 * TILE) >= 2 * TILE]
    layout = make_layout(masks, indexed=coding == "indices")
    for tensor, mask in enumerate(masks):
        dense = tensors(mask.numel(), seed=tensor)[0]
        out = torch.ones(int(mask.sum()), dtype=dtype)
        squares = torch.full((-(-mask.numel() // TILE),), torch.nan)  # overwritten
        wagle_kernels.compress(dense, layout, tensor, out, accumulate=accumulate, squares=squares)
        torch.testing.assert_close(squares.double().sum(), out.double().square().sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("coding", CODINGS)
def test_scatter_undoes_compress_and_keeps_every_other_bit(coding, dtype, density, chunk):
    masks = masks_of(density, NUMELS)
    layout = make_layout(masks, indexed=coding == "indices")
    for tensor, mask in enumerate(masks):
        original = random_patterns(mask.numel(), dtype, seed=tensor)
        dense = original.clone()
        compact = wagle_kernels.compress(dense, layout, tensor, torch.empty(int(mask.sum()), dtype=dtype))
        assert wagle_kernels.scatter(dense, layout, tensor, compact) is dense
        assert torch.equal(bits_of(dense), bits_of(original))
        wagle_kernels.scatter(dense, layout, tensor, torch.ones_like(compact))
        assert torch.equal(bits_of(dense)[~mask], bits_of(original)[~mask])
        assert (dense[mask] == 1).all()
