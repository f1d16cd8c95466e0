"""Temporary memory of every op of the specification."""

import pytest
import torch

import wagle_kernels
from wagle_kernels import TILE, Candidates, Layout, ScoreSpec

from .helpers import CODINGS, SPEC, STEP

NUMEL = 2**23
MAGNITUDE = ScoreSpec("magnitude")


def large_layout(octet, coding):
    return Layout.of([torch.full((NUMEL // 8,), octet, dtype=torch.uint8)], [NUMEL], indexed=coding == "indices")


def large_step(x, layout, **state):
    weight = x.view(torch.bfloat16)[:NUMEL] if "remainder" in state else x
    wagle_kernels.adamw([weight], layout, x, *state.pop("moments", (x, x)), **state, **STEP)


def large_partition(x, **bracket):
    candidates = Candidates.allocate(**bracket, numel=NUMEL, capacity=100, device=x.device)
    masks = torch.zeros(NUMEL // 8, dtype=torch.uint8), torch.zeros(NUMEL // TILE, dtype=torch.int32)
    wagle_kernels.score_partition(*masks, candidates, x, x, x, SPEC)


def large_ties(x):
    masks = torch.zeros(NUMEL // 8, dtype=torch.uint8), torch.full((NUMEL // TILE,), TILE, dtype=torch.int32)
    wagle_kernels.add_ties(*masks, x, x, x, SPEC, key=0, ties=NUMEL)


def large_moments(x):
    exponents = torch.zeros(NUMEL // 64, dtype=torch.uint8)
    moments = x.view(torch.int8)[:NUMEL], x.view(torch.uint8)[:NUMEL]
    return dict(moments=moments, exp_avg_exponent=exponents, exp_avg_sq_exponent=exponents)


LARGE_CALLS = {
    "score": lambda x, bits: wagle_kernels.score(x, x, x, SPEC),
    "random": lambda x, bits: wagle_kernels.score(x, None, None, ScoreSpec("random")),
    "score_histogram": lambda x, bits: [
        wagle_kernels.score_histogram(torch.zeros(2**16, dtype=torch.int64), x, x, x, SPEC, shift=s) for s in (0, 16)
    ],
    "score_partition, all inside": lambda x, bits: large_partition(x, low=0, high=9),
    "score_partition, all beneath": lambda x, bits: large_partition(x, low=8, high=9),
    "add_ties": lambda x, bits: large_ties(x),
    "pack": lambda x, bits: wagle_kernels.pack(x.view(torch.bool)),
    "unpack": lambda x, bits: wagle_kernels.unpack(bits, NUMEL),
    "popcount": lambda x, bits: wagle_kernels.popcount(x.view(torch.uint8)),
    "accumulate": lambda x, bits: [wagle_kernels.accumulate(x, x, squared=squared) for squared in (False, True)],
    "accumulate of bf16": lambda x, bits: wagle_kernels.accumulate(x, x.view(torch.bfloat16)[:NUMEL]),
}
RESULT_BYTES = {"score": 4 * NUMEL, "random": 4 * NUMEL, "pack": NUMEL // 2, "unpack": NUMEL}
LARGE_LAYOUT_CALLS = {
    "compress": lambda x, layout: wagle_kernels.compress(x, layout, 0, x, squares=torch.zeros(NUMEL // TILE)),
    "compress, adding": lambda x, layout: wagle_kernels.compress(x, layout, 0, x, accumulate=True),
    "scatter": lambda x, layout: wagle_kernels.scatter(x.clone(), layout, 0, x[: layout.num_selected]),
    "adamw": lambda x, layout: large_step(x, layout),
    "adamw of bf16": lambda x, layout: large_step(x, layout, remainder=x.view(torch.int16)[:NUMEL]),
    "adamw of 8 bits": lambda x, layout: large_step(x, layout, **large_moments(x)),
}


@pytest.mark.parametrize("op", LARGE_CALLS)
def test_no_temporary_exceeds_a_few_megabytes(op, allocations):
    x, bits = torch.zeros(NUMEL), torch.full((NUMEL // 8,), 0xFF, dtype=torch.uint8)
    with allocations:
        LARGE_CALLS[op](x, bits)
    if op in RESULT_BYTES:
        allocations.sizes.remove(RESULT_BYTES[op])
    assert max(allocations.sizes, default=0) <= 4 * 2**20
    assert allocations.sizes or op == "accumulate", "nothing was recorded"


@pytest.mark.parametrize("octet", [0xFF, 0x10, 0], ids=["all", "some", "none"])
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("op", LARGE_LAYOUT_CALLS)
def test_no_temporary_of_a_layout_exceeds_a_few_megabytes(op, coding, octet, allocations):
    x, layout = torch.zeros(NUMEL), large_layout(octet, coding)
    with allocations:
        LARGE_LAYOUT_CALLS[op](x, layout)
    if op == "scatter":
        allocations.sizes.remove(x.nbytes)
    assert max(allocations.sizes) <= 4 * 2**20


@pytest.mark.parametrize("coding", CODINGS)
def test_making_a_layout_takes_little_more_than_the_layout(coding, allocations):
    with allocations:
        layout = large_layout(0xFF, coding)
    held = layout.bits if coding == "bits" else layout.indices
    allocations.sizes.remove(held.nbytes)
    assert max(allocations.sizes) <= 4 * 2**20
