"""Scores, their histograms, and selection in one pass. Scores stay in registers unless they are asked for."""

# Triton's types do not know that a launch passes constants, and declare sums and maxima as tuples
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..hashing import MASK_32
from ..hashing import fmix32 as fmix32_on_host
from ..layout import TILE
from ..spec import Candidates, ScoreSpec
from .tiles import WIDE, bounds, fmix32, is_even, narrow, ranks, row_bounds, row_tile, tile_grid, to_octets, wide_grid

NARROW = narrow(rows=64)
_UNSPECIALIZED = ("offset", "seed", "low", "high", "position_bits", "capacity", "shift", "prefix", "key", "ties")


@triton.jit
def _keys(theta, forget, retain, offset, base, mask, scale, seed, FORMULA: tl.constexpr, ROWS: tl.constexpr):
    """Score keys of a tile, int32: the bits of the fp32 scores, and -1 outside the tensor."""
    # Load and score
    local = row_tile(ROWS)
    if FORMULA == "random":
        first = base + offset
        low, high = first.to(tl.uint32), (first >> 32).to(tl.uint32)
        index = low + local.to(tl.uint32)
        seed = seed.to(tl.uint32, bitcast=True)
        prefix = tl.where(index < low, fmix32((high + 1) ^ seed), fmix32(high ^ seed))  # a tile may cross 2**32
        h = fmix32(index ^ prefix)
        score = (h >> 8).to(tl.int32, bitcast=True).to(tl.float32) * 5.9604644775390625e-08  # 2**-24
    elif FORMULA == "gradient":
        score = tl.load(forget + base + local, mask=mask, other=0.0)
    elif FORMULA == "product":
        score = tl.load(forget + base + local, mask=mask, other=0.0)
        score *= tl.load(retain + base + local, mask=mask, other=0.0)
    elif FORMULA == "ratio":
        score = tl.load(forget + base + local, mask=mask, other=0.0)
        score = tl.div_rn(tl.abs(score), tl.abs(tl.load(retain + base + local, mask=mask, other=0.0)) + scale)
    else:
        score = tl.load(theta + base + local, mask=mask, other=0.0).to(tl.float32)
        if FORMULA == "wagle":  # scale is 1 / gamma
            score -= tl.load(retain + base + local, mask=mask, other=0.0) * scale
        if FORMULA != "magnitude":  # snip, wagle
            score *= tl.load(forget + base + local, mask=mask, other=0.0)
    # Encode
    return tl.where(mask, score.to(tl.int32, bitcast=True) & 0x7FFFFFFF, -1)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _score_kernel(
    out,
    theta,
    forget,
    retain,
    numel,
    offset,
    scale,
    seed,
    FORMULA: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
):
    # Load and score
    base = tl.program_id(0).to(tl.int64) * (ROWS * 8)
    mask = bounds(numel, base, ROWS, EVEN)
    keys = _keys(theta, forget, retain, offset, base, mask, scale, seed, FORMULA, ROWS)
    # Store
    tl.store(out + base + row_tile(ROWS), keys.to(tl.float32, bitcast=True), mask=mask)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _histogram_kernel(
    counts,
    theta,
    forget,
    retain,
    numel,
    offset,
    shift,
    prefix,
    scale,
    seed,
    FORMULA: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    BINS: tl.constexpr,
    BITS: tl.constexpr,
):
    total = tl.zeros([BINS], tl.int32)
    outside = tl.zeros([ROWS], tl.int32)
    for step in range(STEPS):
        # Load and score
        base = (tl.program_id(0).to(tl.int64) * STEPS + step) * (ROWS * 8)
        mask = bounds(numel, base, ROWS, EVEN)
        keys = _keys(theta, forget, retain, offset, base, mask, scale, seed, FORMULA, ROWS) >> shift
        # Count
        counted = (keys >> BITS) == prefix  # never true for the -1 outside the tensor
        digits = tl.where(counted, keys & (BINS - 1), 0)
        total += tl.histogram(tl.reshape(digits, [ROWS * 8]), BINS)
        outside += tl.sum((~counted).to(tl.int32), axis=1)
    # Store: keys that do not count were counted as digit 0
    bins = tl.arange(0, BINS)
    total = tl.where(bins == 0, total - tl.sum(outside, axis=0), total)
    tl.atomic_add(counts + bins, total.to(tl.int64), mask=total > 0, sem="relaxed")


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _partition_kernel(
    packed,
    inside,
    codes,
    counts,
    theta,
    forget,
    retain,
    numel,
    offset,
    low,
    high,
    position_bits,
    capacity,
    scale,
    seed,
    FORMULA: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
):
    local = row_tile(ROWS)
    num_above = tl.zeros([ROWS], tl.int32)
    largest = tl.zeros([ROWS], tl.int32)
    num_inside = 0
    for step in range(STEPS):
        # Load and score
        base = (tl.program_id(0).to(tl.int64) * STEPS + step) * (ROWS * 8)
        mask = bounds(numel, base, ROWS, EVEN)
        keys = _keys(theta, forget, retain, offset, base, mask, scale, seed, FORMULA, ROWS)
        # Store the bits of the keys above
        above = (keys > high).to(tl.int32)
        octets = packed + base // 8 + tl.arange(0, ROWS)
        tl.store(octets, to_octets(above, ROWS), mask=row_bounds(numel, base, ROWS))
        num_above += tl.sum(above, axis=1)
        largest = tl.maximum(largest, tl.max(keys, axis=1))
        # Append the keys inside
        is_inside = (keys >= low) & (keys <= high)
        found = tl.sum(tl.sum(is_inside.to(tl.int32), axis=1), axis=0)
        if found > 0:
            num_inside += found
            slot = tl.atomic_add(counts + 1, found.to(tl.int64), sem="relaxed")
            # Few tiles hold any, and those hold one or two: a loop over them costs less than ranking all elements
            places = tl.where(is_inside, local, ROWS * 8)
            for _ in range(tl.maximum(tl.minimum(capacity - slot, found), 0).to(tl.int32)):
                place = tl.min(tl.min(places, axis=1), axis=0)
                key = tl.max(tl.max(tl.where(places == place, keys, 0), axis=1), axis=0)
                places = tl.where(places == place, ROWS * 8, places)
                tl.store(codes + slot, ((high - key).to(tl.int64) << position_bits) + (offset + base + place))
                slot += 1
    # Store the counts
    tl.store(inside + tl.program_id(0), num_inside)
    tl.atomic_add(counts, tl.sum(num_above, axis=0).to(tl.int64), sem="relaxed")
    tl.atomic_max(counts + 2, tl.max(largest, axis=0).to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _ties_kernel(
    packed,
    inside,
    first_ranks,
    theta,
    forget,
    retain,
    numel,
    offset,
    key,
    ties,
    scale,
    seed,
    FORMULA: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
):
    tile = tl.program_id(0)
    left = tl.maximum(tl.minimum(ties - tl.load(first_ranks + tile), STEPS * ROWS * 8), 0).to(tl.int32)
    if (tl.load(inside + tile) > 0) & (left > 0):
        for step in range(STEPS):
            # Load and score
            base = (tile.to(tl.int64) * STEPS + step) * (ROWS * 8)
            mask = bounds(numel, base, ROWS, EVEN)
            keys = _keys(theta, forget, retain, offset, base, mask, scale, seed, FORMULA, ROWS)
            # Rank the ties
            tied = keys == key
            rank, found = ranks(to_octets(tied.to(tl.int32), ROWS))
            chosen = to_octets((tied & (rank < left)).to(tl.int32), ROWS)
            # Store their bits
            in_bounds = row_bounds(numel, base, ROWS)
            octets = packed + base // 8 + tl.arange(0, ROWS)
            tl.store(octets, tl.load(octets, mask=in_bounds, other=0) | chosen, mask=in_bounds)
            left -= found


def _score_arguments(
    theta: Tensor, forget: Tensor | None, retain: Tensor | None, spec: ScoreSpec, offset: int
) -> dict:
    seed = fmix32_on_host(spec.seed & MASK_32)
    return dict(
        theta=theta,
        forget=forget,
        retain=retain,
        numel=theta.numel(),
        offset=offset,
        scale=float(1 / spec.scale if spec.formula == "wagle" else spec.scale),
        seed=seed - 2**32 if seed >= 2**31 else seed,
        FORMULA=spec.formula,
        EVEN=is_even(theta),
        enable_fp_fusion=False,  # fused multiply-adds would change the bits of scores, and so the masks
    )


def score(theta: Tensor, forget: Tensor | None, retain: Tensor | None, spec: ScoreSpec, offset: int = 0) -> Tensor:
    """See [`wagle_kernels.score`]."""
    out = torch.empty(theta.numel(), dtype=torch.float32, device=theta.device)
    if theta.numel():
        _score_kernel[wide_grid(theta.numel())](out, **_score_arguments(theta, forget, retain, spec, offset), **WIDE)
    return out


def score_histogram(
    counts: Tensor,
    theta: Tensor,
    forget: Tensor | None,
    retain: Tensor | None,
    spec: ScoreSpec,
    *,
    shift: int,
    prefix: int = 0,
    offset: int = 0,
) -> None:
    """See [`wagle_kernels.score_histogram`]; fast for 256 counters."""
    if theta.numel():
        bins = counts.numel()
        arguments = _score_arguments(theta, forget, retain, spec, offset)
        digit = dict(shift=shift, prefix=prefix, BINS=bins, BITS=bins.bit_length() - 1)
        steps = TILE // (8 * WIDE["ROWS"])
        _histogram_kernel[tile_grid(theta.numel())](counts, **digit, **arguments, **WIDE, STEPS=steps)


def score_partition(
    packed: Tensor,
    inside: Tensor,
    candidates: Candidates,
    theta: Tensor,
    forget: Tensor | None,
    retain: Tensor | None,
    spec: ScoreSpec,
    *,
    offset: int = 0,
) -> None:
    """See [`wagle_kernels.score_partition`]."""
    if theta.numel():
        _partition_kernel[tile_grid(theta.numel())](
            packed,
            inside,
            candidates.codes,
            candidates.counts,
            low=candidates.low,
            high=candidates.high,
            position_bits=candidates.position_bits,
            capacity=candidates.codes.numel(),
            **_score_arguments(theta, forget, retain, spec, offset),
            **NARROW,
        )


def add_ties(
    packed: Tensor,
    inside: Tensor,
    theta: Tensor,
    forget: Tensor | None,
    retain: Tensor | None,
    spec: ScoreSpec,
    *,
    key: int,
    ties: int,
    offset: int = 0,
) -> None:
    """See [`wagle_kernels.add_ties`]; only tiles with ties to select are read."""
    if theta.numel() and ties > 0:
        first_ranks = inside.cumsum(0, dtype=torch.int64) - inside
        arguments = _score_arguments(theta, forget, retain, spec, offset)
        _ties_kernel[(len(inside),)](packed, inside, first_ranks, key=key, ties=ties, **arguments, **NARROW)
