"""The specification: every op in plain PyTorch, chunked so that no temporary exceeds a few MB.

Tensors are contiguous and one-dimensional (a parameter is passed as `p.view(-1)`). Packed masks are `uint8` with
bit `j` of byte `i` standing for element `8 * i + j`, unused bits of the last byte zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 2**18  # elements: at most 2 MB for an int64 temporary
RADIX_BITS = 16  # two passes over the key; a CPU cache holds the 65,536 counters
NON_FINITE_KEY = 0x7F800000  # bits of +inf: NaN and inf have keys from here on

FORMULAS = ("wagle", "gradient", "snip", "product", "magnitude", "random", "ratio")


@dataclass(frozen=True)
class ScoreSpec:
    """
    A pointwise score of `theta` and the two accumulated statistics.

    Args:
        formula (`str`):
            One of `FORMULAS`. With `f` and `r` the forget and retain statistics and `c` the scale:
            `wagle` `|(theta - r / c) * f|`, `gradient` `|f|`, `snip` `|theta * f|`, `product` `|f * r|`,
            `magnitude` `|theta|`, `ratio` `|f| / (|r| + c)`, `random` a hash of the seed and the global index.
        scale (`float`, *optional*, defaults to `1.0`):
            `c` above: the Hessian scale of `wagle`, the additive constant of `ratio`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of `random`.
    """

    formula: str
    scale: float = 1.0
    seed: int = 0


def chunks(numel: int, size: int = CHUNK) -> Iterator[slice]:
    """Slices of `size` elements (a multiple of 8) that cover `numel`."""
    return (slice(start, min(start + size, numel)) for start in range(0, numel, size))


# Scores


def score(theta: Tensor, forget: Tensor | None, retain: Tensor | None, spec: ScoreSpec, offset: int = 0) -> Tensor:
    """
    Score every weight (fp32, never negative).

    Args:
        theta (`torch.Tensor` of shape `(numel,)`, fp32, bf16 or fp16): Weights.
        forget (`torch.Tensor` of shape `(numel,)`, fp32, *optional*): Forget statistic, where the formula uses it.
        retain (`torch.Tensor` of shape `(numel,)`, fp32, *optional*): Retain statistic, where the formula uses it.
        spec (`ScoreSpec`): Formula, scale and seed.
        offset (`int`, *optional*, defaults to `0`): Global index of the first element, read by `random`.

    Returns:
        `torch.Tensor` of shape `(numel,)`, fp32.
    """
    out = torch.empty(theta.numel(), dtype=torch.float32, device=theta.device)
    for part, values in _scored_chunks(theta, forget, retain, spec, offset):
        out[part] = values
    return out


def _scored_chunks(theta, forget, retain, spec, offset):
    for part in chunks(theta.numel()):
        f = None if forget is None else forget[part]
        r = None if retain is None else retain[part]
        yield part, _score_chunk(theta[part], f, r, spec, offset + part.start)


def _score_chunk(theta: Tensor, f: Tensor | None, r: Tensor | None, spec: ScoreSpec, offset: int) -> Tensor:
    match spec.formula:
        case "wagle":
            return (theta.float() - r / spec.scale).mul_(f).abs_()
        case "gradient":
            return f.abs()
        case "snip":
            return (theta.float() * f).abs_()
        case "product":
            return (f * r).abs_()
        case "magnitude":
            return theta.float().abs()
        case "ratio":
            return f.abs().div_(r.abs().add_(spec.scale))
        case "random":
            index = torch.arange(offset, offset + theta.numel(), device=theta.device)
            return _uniform(index, spec.seed)
    raise ValueError(f"Unknown formula '{spec.formula}'; expected one of {', '.join(FORMULAS)}.")


def _uniform(index: Tensor, seed: int) -> Tensor:
    """Hash of (seed, index) as a multiple of 2**-24 in [0, 1): the same on every device and for every chunking."""
    low, high = index & 0xFFFFFFFF, index >> 32
    mixed_seed = _mix(torch.tensor(seed & 0xFFFFFFFF, device=index.device))
    return (_mix(low ^ _mix(high ^ mixed_seed)) >> 8).float().mul_(2.0**-24)


def _mix(h: Tensor) -> Tensor:
    """The 32-bit finaliser of MurmurHash3, on int64 tensors that hold uint32 values."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ (h >> 16)


# Selection


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
    """
    Add a histogram of one digit of the score keys to `counts`, storing no scores.

    The key of a score is its fp32 bit pattern; scores are never negative, so keys order like scores. Counted are the
    keys whose bits above the digit equal `prefix`.

    Args:
        counts (`torch.Tensor` of shape `(2**bits,)`, int64): Counters, updated in place; their number sets the digit.
        shift (`int`): Position of the digit's lowest bit in the key.
        prefix (`int`, *optional*, defaults to `0`): Key bits above the digit, `key >> (shift + bits)`.
        theta, forget, retain, spec, offset: As in [`score`].
    """
    bins = counts.numel()
    bits = bins.bit_length() - 1
    for _, values in _scored_chunks(theta, forget, retain, spec, offset):
        keys = values.view(torch.int32)
        if shift + bits < 32:
            keys = keys[(keys >> (shift + bits)) == prefix]
        counts += torch.bincount((keys >> shift) & (bins - 1), minlength=bins)


def score_threshold(
    theta: Tensor,
    forget: Tensor | None,
    retain: Tensor | None,
    spec: ScoreSpec,
    *,
    key: int,
    ties: int,
    offset: int = 0,
) -> tuple[Tensor, int]:
    """
    Mask bits of the scores whose key is above `key`, and of the first `ties` whose key equals it.

    Args:
        key (`int`): Threshold key.
        ties (`int`): How many equal keys may still be selected, in rising flat order.
        theta, forget, retain, spec, offset: As in [`score`].

    Returns:
        `tuple[torch.Tensor, int]`: Packed bits of shape `(ceil(numel / 8),)`, uint8, and the number of ties used.
    """
    numel, used = theta.numel(), 0
    packed = torch.empty((numel + 7) // 8, dtype=torch.uint8, device=theta.device)
    for part, values in _scored_chunks(theta, forget, retain, spec, offset):
        keys = values.view(torch.int32)
        selected = keys > key
        if used < ties:
            tied = (keys == key).nonzero().view(-1)[: ties - used]
            selected[tied] = True
            used += tied.numel()
        packed[part.start // 8 : (part.stop + 7) // 8] = pack(selected)
    return packed, used


# Bit masks

_GATHER_BITS = 0x0102040810204080  # times eight 0/1 bytes: bit j of the top byte is byte j, no carries


def pack(bits: Tensor) -> Tensor:
    """
    Pack a boolean tensor of shape `(numel,)` into `ceil(numel / 8)` bytes, lowest bit first
    (`numpy.packbits(bitorder="little")`).
    """
    numel = bits.numel()
    packed = torch.empty((numel + 7) // 8, dtype=torch.uint8, device=bits.device)
    for part in chunks(numel):
        piece = bits[part]
        if piece.numel() % 8 or piece.storage_offset() % 8:
            padded = piece.new_zeros((piece.numel() + 7) // 8 * 8)
            padded[: piece.numel()] = piece
            piece = padded
        octets = piece.view(torch.int64) * _GATHER_BITS >> 56
        packed[part.start // 8 : (part.stop + 7) // 8] = octets.to(torch.uint8)  # wraps negative octets to 128..255
    return packed


def unpack(packed: Tensor, numel: int) -> Tensor:
    """Boolean tensor of shape `(numel,)` from `ceil(numel / 8)` packed bytes."""
    bits = torch.empty(numel, dtype=torch.bool, device=packed.device)
    for part in chunks(numel):
        bits[part] = _unpack_chunk(packed[part.start // 8 : (part.stop + 7) // 8], part.stop - part.start)
    return bits


def _unpack_chunk(packed: Tensor, numel: int) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed.view(-1, 1) >> shifts & 1).view(-1)[:numel].view(torch.bool)


def popcount(packed: Tensor) -> int:
    """Number of set bits."""
    total = 0
    for part in chunks(packed.numel()):
        v = packed[part]
        v = v - (v >> 1 & 0x55)
        v = (v & 0x33) + (v >> 2 & 0x33)
        total += int(((v + (v >> 4)) & 0x0F).sum(dtype=torch.int64))
    return total


# Dense <-> compact


def compress(dense: Tensor, packed: Tensor, out: Tensor, *, accumulate: bool = False) -> Tensor:
    """
    Gather the selected elements of `dense`, in rising order, into `out`.

    Args:
        dense (`torch.Tensor` of shape `(numel,)`): Values, for example a gradient.
        packed (`torch.Tensor` of shape `(ceil(numel / 8),)`, uint8): Mask.
        out (`torch.Tensor` of shape `(selected,)`): Target, written in place and in its own dtype.
        accumulate (`bool`, *optional*, defaults to `False`): Add to `out` instead of overwriting it.

    Returns:
        `torch.Tensor`: `out`.
    """
    start = 0
    for part in chunks(dense.numel()):
        bits = _unpack_chunk(packed[part.start // 8 : (part.stop + 7) // 8], part.stop - part.start)
        values = dense[part][bits]
        target = out[start : start + values.numel()]
        target.add_(values) if accumulate else target.copy_(values)
        start += values.numel()
    return out


def scatter(dense: Tensor, packed: Tensor, compact: Tensor) -> Tensor:
    """Write `compact` back to the selected elements of `dense`, in place; every other bit of `dense` stays."""
    start = 0
    for part in chunks(dense.numel()):
        bits = _unpack_chunk(packed[part.start // 8 : (part.stop + 7) // 8], part.stop - part.start)
        count = int(bits.sum())
        dense[part].masked_scatter_(bits, compact[start : start + count])
        start += count
    return dense


# Statistics


def accumulate(total: Tensor, grad: Tensor, *, squared: bool = False) -> Tensor:
    """Add `grad` (or its square) to the fp32 `total`, in place. Both of shape `(numel,)`."""
    for part in chunks(grad.numel()):
        piece = grad[part].float()
        total[part].addcmul_(piece, piece) if squared else total[part].add_(piece)
    return total


# Optimizer


def join_split(high: Tensor, low: Tensor) -> Tensor:
    """fp32 master from its bf16 weight and int16 remainder: the weight's bits moved up by 16, plus the remainder."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + low).view(torch.float32)


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """bf16 weight (nearest, halves away from zero so that the remainder fits) and int16 remainder of an fp32 master."""
    bits = master.view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


def adamw(
    weight: Tensor,
    remainder: Tensor | None,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """
    One AdamW step (arXiv 1711.05101) on compact arrays, in place, computed in fp32.

    Args:
        weight (`torch.Tensor` of shape `(selected,)`, fp32 or bf16): Selected weights.
        remainder (`torch.Tensor` of shape `(selected,)`, int16, *optional*):
            Low bits of the fp32 master of a bf16 weight. Without it the update is rounded to the weight's dtype.
        grad, exp_avg, exp_avg_sq (`torch.Tensor` of shape `(selected,)`, fp32): Gradient and moments.
        step (`int`): Number of this step, from 1.
        lr, beta1, beta2, eps, weight_decay (`float`): As in `torch.optim.AdamW`.
    """
    step_size = lr / (1 - beta1**step)
    correction = (1 - beta2**step) ** 0.5
    for part in chunks(weight.numel()):
        g, m, v, w = grad[part], exp_avg[part], exp_avg_sq[part], weight[part]
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        master = w.float() if remainder is None else join_split(w, remainder[part])
        master.mul_(1 - lr * weight_decay).addcdiv_(m, v.sqrt().div_(correction).add_(eps), value=-step_size)
        if remainder is None:
            w.copy_(master)
        else:
            high, low = split(master)
            w.copy_(high)
            remainder[part].copy_(low)
