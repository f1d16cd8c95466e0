"""AdamW on the selected weights of many tensors in one launch: gather, update and scatter in registers.

Weights are read and written through a table of their tensors' addresses. bf16 weights are handled as int16 bit
patterns and rounded with integer operations.
"""

# Triton's types do not know that a launch passes constants, and declare sums and maxima as tuples
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..hashing import fmix32 as fmix32_on_host
from ..layout import DENSE_GROUP, RANK_GROUP, Layout
from .compaction import BY_BITS, BY_INDICES, tile_span
from .eight_bit import (
    SIGNED,
    UNSIGNED,
    by_row,
    decode_signed,
    decode_unsigned,
    encode_signed,
    encode_unsigned,
    group_exponents,
    lowest_level,
    random_bits,
    row_exponents,
)
from .tiles import from_octets, ranks, row_tile


@triton.jit
def _to_master(weight, remainder, IS_BF16: tl.constexpr, SPLIT: tl.constexpr):
    """Join bf16 bits (int16) and their remainder, if any, to an fp32 master; an fp32 weight is its own master."""
    if IS_BF16:
        bits = weight.to(tl.int32) << 16
        if SPLIT:
            bits += remainder.to(tl.int32)
        return bits.to(tl.float32, bitcast=True)
    else:
        return weight


@triton.jit
def _from_master(master, IS_BF16: tl.constexpr, SPLIT: tl.constexpr):
    """Split a master into weight and remainder; without a remainder, round halves to even, as torch does."""
    if IS_BF16:
        bits = master.to(tl.int32, bitcast=True)
        if SPLIT:
            high = (bits + 0x8000) >> 16
            return high.to(tl.int16), (bits - (high << 16)).to(tl.int16)
        else:
            high = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            return high.to(tl.int16), high.to(tl.int16)
    else:
        return master, master


@triton.jit
def _update(master, g, m, v, grad_scale, beta1_rest, beta2, beta2_rest, decay, step_size, correction, eps):
    """Compute the AdamW step; `beta_rest` is `1 - beta` and `correction` is `1 / sqrt(1 - beta2**step)`."""
    g *= grad_scale
    m += beta1_rest * (g - m)
    v = v * beta2 + g * g * beta2_rest
    root = tl.rsqrt(tl.sqrt(v) * correction + eps)  # squared below: a division takes twice as many instructions
    return master * decay - (step_size * m) * (root * root), m, v


@triton.jit
def _weight_address(
    addresses, owners, first_tiles, tile, IS_BF16: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr
):
    """Compute the address of the weights of a tile."""
    owner = tl.load(owners + tile)
    pointer_type: tl.constexpr = tl.pointer_type(tl.int16 if IS_BF16 else tl.float32)
    pointer = tl.load(addresses + owner).to(pointer_type)
    pointer += (tile - tl.load(first_tiles + owner)).to(tl.int64) * TILE
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit(do_not_specialize=("seed",))
def _adamw_indices_kernel(
    addresses,
    owners,
    first_tiles,
    starts,
    groups,
    indices,
    grad,
    exp_avg,
    exp_avg_sq,
    exp_avg_exponent,
    exp_avg_sq_exponent,
    remainder,
    grad_scale,
    beta1_rest,
    beta2,
    beta2_rest,
    decay,
    step_size,
    correction,
    eps,
    seed,
    IS_BF16: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
):
    tile = tl.program_id(0)
    start, count = tile_span(starts, tile)
    weights = _weight_address(addresses, owners, first_tiles, tile, IS_BF16, False, TILE)
    group_in_chunk = tl.arange(0, CHUNK // GROUP)
    place = group_in_chunk[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    for chunk in range(0, count, CHUNK):
        # Load
        mask = place < count - chunk
        first = start + chunk  # added to pointers: the offsets between a thread's elements stay constants
        local = tl.load(indices + first + place, mask=mask).to(tl.int32)
        weight = tl.load(weights + local, mask=mask)
        low = weight
        if remainder is not None:
            low = tl.load(remainder + first + place, mask=mask)
        master = _to_master(weight, low, IS_BF16, remainder is not None)
        g = tl.load(grad + first + place, mask=mask).to(tl.float32)
        m = tl.load(exp_avg + first + place, mask=mask)
        v = tl.load(exp_avg_sq + first + place, mask=mask)
        if exp_avg_exponent is not None:
            # Decode
            group = tl.load(groups + tile) + chunk // GROUP + group_in_chunk
            in_count = group_in_chunk * GROUP < count - chunk
            m_lowest = lowest_level(tl.load(exp_avg_exponent + group, mask=in_count), SIGNED)
            v_lowest = lowest_level(tl.load(exp_avg_sq_exponent + group, mask=in_count), UNSIGNED)
            m = decode_signed(m, m_lowest[:, None])
            v = decode_unsigned(v, v_lowest[:, None])
        # Update
        master, m, v = _update(
            master, g, m, v, grad_scale, beta1_rest, beta2, beta2_rest, decay, step_size, correction, eps
        )
        if exp_avg_exponent is not None:
            # Encode
            m_exponents = row_exponents(tl.where(mask, tl.abs(m), 0.0))
            v_exponents = row_exponents(tl.where(mask, v, 0.0))
            tl.store(exp_avg_exponent + group, m_exponents.to(tl.uint8), mask=in_count)
            tl.store(exp_avg_sq_exponent + group, v_exponents.to(tl.uint8), mask=in_count)
            m = encode_signed(m, lowest_level(m_exponents, SIGNED)[:, None])
            v = encode_unsigned(v, lowest_level(v_exponents, UNSIGNED)[:, None], random_bits(first, place, seed))
        # Store
        tl.store(exp_avg + first + place, m, mask=mask)
        tl.store(exp_avg_sq + first + place, v, mask=mask)
        weight, low = _from_master(master, IS_BF16, remainder is not None)
        tl.store(weights + local, weight, mask=mask)
        if remainder is not None:
            tl.store(remainder + first + place, low, mask=mask)


@triton.jit(do_not_specialize=("seed",))
def _adamw_bits_kernel(
    addresses,
    owners,
    first_tiles,
    starts,
    bits,
    grad,
    exp_avg,
    exp_avg_sq,
    exp_avg_exponent,
    exp_avg_sq_exponent,
    remainder,
    grad_scale,
    beta1_rest,
    beta2,
    beta2_rest,
    decay,
    step_size,
    correction,
    eps,
    seed,
    IS_BF16: tl.constexpr,
    EVEN: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    tile = tl.program_id(0)
    start = tl.load(starts + tile)
    weights = _weight_address(addresses, owners, first_tiles, tile, IS_BF16, ALIGNED, STEPS * ROWS * 8)
    GROUP_ROWS: tl.constexpr = GROUP // 8
    NUM_GROUPS: tl.constexpr = ROWS // GROUP_ROWS
    local = row_tile(ROWS)
    for step in range(STEPS):
        # Find the selected elements and their ranks
        part = tile.to(tl.int64) * STEPS + step
        octets = tl.load(bits + part * ROWS + tl.arange(0, ROWS))
        mask = from_octets(octets) != 0
        rank, found = ranks(octets)
        # Load
        touched = tl.broadcast_to((octets != 0)[:, None], [ROWS, 8]) if EVEN else mask
        weight = tl.load(weights + step * ROWS * 8 + local, mask=touched)
        low = weight
        if remainder is not None:
            low = tl.load(remainder + start + rank, mask=mask)
        master = _to_master(weight, low, IS_BF16, remainder is not None)
        g = tl.load(grad + start + rank, mask=mask).to(tl.float32)
        m = tl.load(exp_avg + start + rank, mask=mask)
        v = tl.load(exp_avg_sq + start + rank, mask=mask)
        group = part * NUM_GROUPS + tl.arange(0, NUM_GROUPS)
        if exp_avg_exponent is not None:
            # Decode
            m = decode_signed(m, by_row(lowest_level(tl.load(exp_avg_exponent + group), SIGNED), GROUP_ROWS))
            v = decode_unsigned(v, by_row(lowest_level(tl.load(exp_avg_sq_exponent + group), UNSIGNED), GROUP_ROWS))
        # Update
        master, m, v = _update(
            master, g, m, v, grad_scale, beta1_rest, beta2, beta2_rest, decay, step_size, correction, eps
        )
        if exp_avg_exponent is not None:
            # Encode
            m_exponents = group_exponents(tl.where(mask, tl.abs(m), 0.0), NUM_GROUPS, GROUP_ROWS)
            v_exponents = group_exponents(tl.where(mask, v, 0.0), NUM_GROUPS, GROUP_ROWS)
            tl.store(exp_avg_exponent + group, m_exponents.to(tl.uint8))
            tl.store(exp_avg_sq_exponent + group, v_exponents.to(tl.uint8))
            m = encode_signed(m, by_row(lowest_level(m_exponents, SIGNED), GROUP_ROWS))
            v_lowest = by_row(lowest_level(v_exponents, UNSIGNED), GROUP_ROWS)
            v = encode_unsigned(v, v_lowest, random_bits(start, rank, seed))
        # Store
        tl.store(exp_avg + start + rank, m, mask=mask)
        tl.store(exp_avg_sq + start + rank, v, mask=mask)
        updated, low = _from_master(master, IS_BF16, remainder is not None)
        tl.store(weights + step * ROWS * 8 + local, tl.where(mask, updated, weight), mask=touched)
        if remainder is not None:
            tl.store(remainder + start + rank, low, mask=mask)
        start += found


def adamw(
    weights: Sequence[Tensor],
    layout: Layout,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    remainder: Tensor | None = None,
    exp_avg_exponent: Tensor | None = None,
    exp_avg_sq_exponent: Tensor | None = None,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_scale: float = 1.0,
) -> None:
    """See [`wagle_kernels.adamw`]."""
    arrays = {"grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "remainder": remainder}
    arrays = {name: values for name, values in arrays.items() if values is not None}
    layout.check_sizes(dict(enumerate(weights)), arrays, layout.num_selected)
    if any(weight.dtype != weights[0].dtype for weight in weights):
        raise ValueError("The weights of a layout must have one dtype.")
    if layout.num_selected == 0:
        return
    seed = fmix32_on_host(step)
    state = (grad, exp_avg, exp_avg_sq, exp_avg_exponent, exp_avg_sq_exponent, remainder)
    addresses = torch.tensor([weight.data_ptr() for weight in weights], dtype=torch.int64).to(grad.device)
    place = (addresses, layout.owners, layout.first_tiles, layout.starts)
    options = dict(
        grad_scale=float(grad_scale),
        beta1_rest=1 - beta1,
        beta2=beta2,
        beta2_rest=1 - beta2,
        decay=1 - lr * weight_decay,
        step_size=lr / (1 - beta1**step),
        correction=(1 - beta2**step) ** -0.5,
        eps=eps,
        seed=seed - 2**32 if seed >= 2**31 else seed,
        IS_BF16=weights[0].dtype == torch.bfloat16,
    )
    grid = (layout.tiles[-1],)
    if layout.indices is not None:
        positions = layout.groups, layout.indices
        _adamw_indices_kernel[grid](*place, *positions, *state, **options, GROUP=RANK_GROUP, **BY_INDICES)
    else:
        rows = dict(
            EVEN=all(numel % 8 == 0 for numel in layout.numels),
            ALIGNED=all(weight.data_ptr() % 16 == 0 for weight in weights),
        )
        _adamw_bits_kernel[grid](*place, layout.bits, *state, **options, **rows, GROUP=DENSE_GROUP, **BY_BITS)
    torch.autograd.graph.increment_version(weights)  # autograd does not see writes of kernels
