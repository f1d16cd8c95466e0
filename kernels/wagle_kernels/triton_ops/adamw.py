"""AdamW of the selected weights of many tensors in one launch: gather, update and scatter in registers.

Compact state is read where it lies, weights through a table of their tensors' addresses. bf16 weights are handled as
int16 bit patterns, and rounded with integer operations.
"""

# To Triton's own types a constant of a launch is none, and a sum or maximum is a tuple
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..hashing import mix as mix_on_host
from ..layout import DENSE_GROUP, RANK_GROUP, Layout
from ..reference.eight_bit import SIGNED_LEVELS, UNSIGNED_LEVELS
from .compaction import BY_BITS, BY_INDICES, tile_span
from .tiles import from_octets, mix, ranks, row_tile

_SIGNED, _UNSIGNED = tl.constexpr(SIGNED_LEVELS), tl.constexpr(UNSIGNED_LEVELS)


@triton.jit
def _to_master(weight, remainder, IS_BF16: tl.constexpr, SPLIT: tl.constexpr):
    """fp32 master of bf16 bits (int16) and their remainder, or of an fp32 weight."""
    if IS_BF16:
        bits = weight.to(tl.int32) << 16
        if SPLIT:
            bits += remainder.to(tl.int32)
        return bits.to(tl.float32, bitcast=True)
    else:
        return weight


@triton.jit
def _from_master(master, IS_BF16: tl.constexpr, SPLIT: tl.constexpr):
    """Weight and remainder of a master; without a remainder halves are rounded to even, as torch rounds."""
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
    """The arithmetic of AdamW; `beta_rest` is `1 - beta`, `correction` `1 / sqrt(1 - beta2**step)`."""
    g *= grad_scale
    m += beta1_rest * (g - m)
    v = v * beta2 + g * g * beta2_rest
    root = tl.rsqrt(tl.sqrt(v) * correction + eps)  # squared below: a division takes twice as many instructions
    return master * decay - (step_size * m) * (root * root), m, v


@triton.jit
def _lowest(exponents, LEVELS: tl.constexpr):
    """Pattern of the level of code 0, see [`reference.eight_bit`]."""
    return (exponents.to(tl.int32) << 3) + (_UNSIGNED - LEVELS)


@triton.jit
def _decode_signed(codes, lowest):
    codes = codes.to(tl.int32)
    pattern = ((tl.abs(codes) + lowest) << 20) | (codes & -0x80000000)
    return tl.where(codes == 0, 0, pattern).to(tl.float32, bitcast=True)


@triton.jit
def _decode_unsigned(codes, lowest):
    return ((codes.to(tl.int32) + lowest) << 20).to(tl.float32, bitcast=True)


@triton.jit
def _encode_signed(values, lowest):
    rounded = ((values.to(tl.int32, bitcast=True) & 0x7FFFFFFF) + (1 << 19)) >> 20
    level = tl.maximum(rounded - lowest, 0)
    return tl.where(values < 0, -level, level).to(tl.int8)


@triton.jit
def _encode_unsigned(values, lowest, random):
    level = ((values.to(tl.int32, bitcast=True) + random) >> 20) - lowest
    return tl.maximum(level, 1).to(tl.uint8)


@triton.jit
def _row_exponents(values):
    """
    Exponents of the scales of rows of numbers that are not negative. As integers they order alike, and a warp reduces
    integers in one instruction.
    """
    largest = tl.max(values.to(tl.int32, bitcast=True), axis=1)
    return tl.maximum(((largest + (1 << 20)) >> 23) - 31, 0)


@triton.jit
def _group_exponents(values, NUM_GROUPS: tl.constexpr, GROUP_ROWS: tl.constexpr):
    """Exponents of the scales of groups of rows."""
    return tl.max(tl.reshape(_row_exponents(values), [NUM_GROUPS, GROUP_ROWS]), axis=1)


@triton.jit
def _by_row(groups, GROUP_ROWS: tl.constexpr):
    """A value of each group for each of its rows, of shape `[ROWS, 1]`."""
    rows = tl.broadcast_to(groups[:, None], [groups.shape[0], GROUP_ROWS])
    return tl.reshape(rows, [groups.shape[0] * GROUP_ROWS])[:, None]


@triton.jit
def _random(start, rank, seed):
    """20 random bits for each compact element, int32."""
    h = mix((start.to(tl.uint32) + rank.to(tl.uint32)) ^ seed.to(tl.uint32, bitcast=True))
    return (h >> 12).to(tl.int32, bitcast=True)


@triton.jit
def _weight_address(
    addresses, owners, first_tiles, tile, IS_BF16: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr
):
    """Where the weights of a tile start."""
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
        mask = place < count - chunk
        first = start + chunk  # added to pointers: the offsets of a thread's elements from each other stay constants
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
            group = tl.load(groups + tile) + chunk // GROUP + group_in_chunk
            in_count = group_in_chunk * GROUP < count - chunk
            m_lowest = _lowest(tl.load(exp_avg_exponent + group, mask=in_count), _SIGNED)
            v_lowest = _lowest(tl.load(exp_avg_sq_exponent + group, mask=in_count), _UNSIGNED)
            m = _decode_signed(m, m_lowest[:, None])
            v = _decode_unsigned(v, v_lowest[:, None])
        master, m, v = _update(
            master, g, m, v, grad_scale, beta1_rest, beta2, beta2_rest, decay, step_size, correction, eps
        )
        if exp_avg_exponent is not None:
            m_exponents = _row_exponents(tl.where(mask, tl.abs(m), 0.0))
            v_exponents = _row_exponents(tl.where(mask, v, 0.0))
            tl.store(exp_avg_exponent + group, m_exponents.to(tl.uint8), mask=in_count)
            tl.store(exp_avg_sq_exponent + group, v_exponents.to(tl.uint8), mask=in_count)
            m = _encode_signed(m, _lowest(m_exponents, _SIGNED)[:, None])
            v = _encode_unsigned(v, _lowest(v_exponents, _UNSIGNED)[:, None], _random(first, place, seed))
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
        part = tile.to(tl.int64) * STEPS + step
        octets = tl.load(bits + part * ROWS + tl.arange(0, ROWS))
        mask = from_octets(octets) != 0
        rank, found = ranks(octets)
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
            m = _decode_signed(m, _by_row(_lowest(tl.load(exp_avg_exponent + group), _SIGNED), GROUP_ROWS))
            v = _decode_unsigned(v, _by_row(_lowest(tl.load(exp_avg_sq_exponent + group), _UNSIGNED), GROUP_ROWS))
        master, m, v = _update(
            master, g, m, v, grad_scale, beta1_rest, beta2, beta2_rest, decay, step_size, correction, eps
        )
        if exp_avg_exponent is not None:
            m_exponents = _group_exponents(tl.where(mask, tl.abs(m), 0.0), NUM_GROUPS, GROUP_ROWS)
            v_exponents = _group_exponents(tl.where(mask, v, 0.0), NUM_GROUPS, GROUP_ROWS)
            tl.store(exp_avg_exponent + group, m_exponents.to(tl.uint8))
            tl.store(exp_avg_sq_exponent + group, v_exponents.to(tl.uint8))
            m = _encode_signed(m, _by_row(_lowest(m_exponents, _SIGNED), GROUP_ROWS))
            v_lowest = _by_row(_lowest(v_exponents, _UNSIGNED), GROUP_ROWS)
            v = _encode_unsigned(v, v_lowest, _random(start, rank, seed))
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
    seed = mix_on_host(step)
    state = (grad, exp_avg, exp_avg_sq, exp_avg_exponent, exp_avg_sq_exponent, remainder)
    place = (_addresses(weights, grad.device), layout.owners, layout.first_tiles, layout.starts)
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
    torch.autograd.graph.increment_version(weights)  # written behind autograd's back


def _addresses(weights: Sequence[Tensor], device: torch.device) -> Tensor:
    return torch.tensor([weight.data_ptr() for weight in weights], dtype=torch.int64).to(device)
