"""Compress and scatter of the kernels, against the specification."""

import pytest
import torch

import wagle_kernels
from wagle_kernels import TILE

from ..helpers import CODINGS, DEVICE, DTYPES, bits_of, make_layout, masks_of, random_bits, random_patterns, tensors
from .addresses import FAR, aligned, far, far_copy, far_layout, misaligned
from .marks import interpreter_only, masked_lanes

pytestmark = masked_lanes

SEVERAL = [5, 0, TILE + 808]  # sizes of the tensors of one layout: parts of a tile, none, a whole one and a part
DTYPE_PAIRS = [
    *((dtype, torch.float32, accumulate) for dtype in DTYPES for accumulate in (False, True)),
    *((dtype, torch.bfloat16, accumulate) for dtype in DTYPES[:2] for accumulate in (False, True)),
]


def assert_same_compression(density, coding, dtype, out_dtype, accumulate, place=aligned):
    masks = masks_of(density, SEVERAL)
    ours, theirs = (make_layout(masks, indexed=coding == "indices", device=d) for d in (DEVICE, "cpu"))
    for tensor, mask in enumerate(masks):
        dense = tensors(mask.numel(), dtype, seed=tensor)[0]
        before = tensors(int(mask.sum()), out_dtype, seed=tensor + 50)[0]
        squares = torch.full((-(-mask.numel() // TILE),), torch.nan, device=DEVICE)
        out = wagle_kernels.compress(
            place(dense), ours, tensor, place(before), accumulate=accumulate, squares=squares, backend="triton"
        )
        expected = wagle_kernels.compress(dense, theirs, tensor, before, accumulate=accumulate, backend="reference")
        assert torch.equal(bits_of(out), bits_of(expected))
        norm = expected.double().square().sum()
        torch.testing.assert_close(squares.cpu().double().sum(), norm, rtol=1e-5, atol=0)
        wagle_kernels.compress(place(dense), ours, tensor, place(before), backend="triton")  # without squares


@pytest.mark.parametrize(("dtype", "out_dtype", "accumulate"), DTYPE_PAIRS)
@pytest.mark.parametrize("coding", CODINGS)
def test_compress_gives_the_bits_of_the_specification(coding, dtype, out_dtype, accumulate):
    for density in (0.0, 0.03, 1.0):
        assert_same_compression(density, coding, dtype, out_dtype, accumulate)


@pytest.mark.parametrize("coding", CODINGS)
def test_compress_takes_views_at_any_address(coding):
    assert_same_compression(0.5, coding, torch.bfloat16, torch.float32, True, misaligned)


def test_compress_in_steps_as_launched_gives_the_bits_of_the_specification(as_launched):
    assert_same_compression(0.5, "bits", torch.bfloat16, torch.float32, True)


def assert_same_scattering(density, coding, dtype, place=aligned):
    masks = masks_of(density, SEVERAL)
    ours, theirs = (make_layout(masks, indexed=coding == "indices", device=d) for d in (DEVICE, "cpu"))
    for tensor, mask in enumerate(masks):
        dense, compact = random_patterns(mask.numel(), dtype), tensors(int(mask.sum()), dtype)[0]
        target = place(dense)
        assert wagle_kernels.scatter(target, ours, tensor, place(compact), backend="triton") is target
        wagle_kernels.scatter(dense, theirs, tensor, compact, backend="reference")
        assert torch.equal(bits_of(target.clone()), bits_of(dense))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("coding", CODINGS)
def test_scatter_gives_the_bits_of_the_specification(coding, density, dtype):
    assert_same_scattering(density, coding, dtype)


@pytest.mark.parametrize("coding", CODINGS)
def test_scatter_takes_views_at_any_address(coding):
    assert_same_scattering(0.5, coding, torch.bfloat16, misaligned)


def test_scatter_in_steps_as_launched_gives_the_bits_of_the_specification(as_launched):
    assert_same_scattering(0.5, "bits", torch.bfloat16)


@interpreter_only
@pytest.mark.parametrize("numel", [1000, 1001])
@pytest.mark.parametrize("coding", CODINGS)
def test_compress_and_scatter_reach_beyond_32_bits(coding, numel, last_program):
    mask, dense = random_bits(numel), tensors(numel, torch.bfloat16)[0]
    near, layout = far_layout(mask, coding)
    selected = near.num_selected
    out, squares = far(FAR + selected), torch.zeros(layout.tiles[-1])
    wagle_kernels.compress(far_copy(dense), layout, 0, out, squares=squares, backend="triton")
    assert torch.equal(out[FAR:], dense[mask].float())
    torch.testing.assert_close(squares[-1], out[FAR:].square().sum())
    assert not out[:numel].any()
    target = far(FAR + numel, torch.bfloat16)
    wagle_kernels.scatter(target, layout, 0, far_copy(dense[mask]), backend="triton")
    assert torch.equal(target[FAR:], torch.where(mask, dense, 0))
    assert not target[:numel].any()
