"""Ops on flat tensors: scores, exact selection, bit masks, compact arrays, AdamW. Knows torch, no model.

Every op takes `backend=None`: `None` decides by device, `"reference"` forces the plain PyTorch specification,
`"triton"` the Triton kernels (on a GPU, or interpreted where `TRITON_INTERPRET=1` was set before the first import).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from . import reference
from .layout import DENSE_GROUP, INDEX_DENSITY, RANK_GROUP, TILE, Layout
from .reference.chunking import CHUNK
from .spec import FORMULAS, NON_FINITE_KEY, Candidates, ScoreSpec, join_split, split

__all__ = [
    "CHUNK",
    "DENSE_GROUP",
    "FORMULAS",
    "INDEX_DENSITY",
    "NON_FINITE_KEY",
    "RANK_GROUP",
    "TILE",
    "Candidates",
    "Layout",
    "ScoreSpec",
    "accumulate",
    "adamw",
    "add_ties",
    "compress",
    "digit_bits",
    "join_split",
    "pack",
    "popcount",
    "scatter",
    "score",
    "score_histogram",
    "score_partition",
    "split",
    "unpack",
]

Backend = Literal["reference", "triton"]


def digit_bits(device: torch.device) -> int:
    """Bits of the digit that [`score_histogram`] counts fastest: a CPU's cache holds many counters, a warp's few."""
    return 8 if device.type == "cuda" else 16


# Scores and selection


def score(
    theta: Tensor,
    forget: Tensor | None,
    retain: Tensor | None,
    spec: ScoreSpec,
    offset: int = 0,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """
    Score every weight (fp32, never negative).

    Args:
        theta (`torch.Tensor` of shape `(numel,)`, fp32, bf16 or fp16): Weights.
        forget (`torch.Tensor` of shape `(numel,)`, fp32, *optional*): Forget statistic, where the formula uses it.
        retain (`torch.Tensor` of shape `(numel,)`, fp32, *optional*): Retain statistic, where the formula uses it.
        spec ([`ScoreSpec`]): Formula, scale and seed.
        offset (`int`, *optional*, defaults to `0`): Global index of the first element, read by `random`.
        backend (`str`, *optional*): `"reference"` or `"triton"`; by default decided by the device.

    Returns:
        `torch.Tensor` of shape `(numel,)`, fp32.
    """
    with _checked_backend("score", backend, theta, forget, retain) as module:
        return module.score(theta, forget, retain, spec, offset)


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
    backend: Backend | None = None,
) -> None:
    """
    Add a histogram of one digit of the score keys to `counts`, storing no scores.

    The key of a score is its fp32 bit pattern; scores are never negative, so keys order like scores. Counted are the
    keys whose bits above the digit equal `prefix`.

    Args:
        counts (`torch.Tensor` of shape `(2**bits,)`, int64): Counters, updated in place; their number sets the digit.
        shift (`int`): Position of the digit's lowest bit in the key.
        prefix (`int`, *optional*, defaults to `0`): Key bits above the digit, `key >> (shift + bits)`.
        theta, forget, retain, spec, offset, backend: As in [`score`].
    """
    with _checked_backend("score_histogram", backend, counts, theta, forget, retain) as module:
        module.score_histogram(counts, theta, forget, retain, spec, shift=shift, prefix=prefix, offset=offset)


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
    backend: Backend | None = None,
) -> None:
    """
    Set the bits of the keys above the candidates' bracket and append those inside to the candidates: one pass.

    Args:
        packed (`torch.Tensor` of shape `(ceil(numel / 8),)`, uint8): Mask bits, overwritten.
        inside (`torch.Tensor` of shape `(ceil(numel / TILE),)`, int32): Keys inside by tile, overwritten.
        candidates ([`Candidates`]): Appended to.
        theta, forget, retain, spec, offset, backend: As in [`score`].
    """
    with _checked_backend("score_partition", backend, packed, inside, theta, forget, retain) as module:
        module.score_partition(packed, inside, candidates, theta, forget, retain, spec, offset=offset)


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
    backend: Backend | None = None,
) -> None:
    """
    Set the bits of the first `ties` keys that equal `key`, in rising flat order.

    Args:
        packed (`torch.Tensor` of shape `(ceil(numel / 8),)`, uint8): Mask bits, added to.
        inside (`torch.Tensor` of shape `(ceil(numel / TILE),)`, int32):
            Equal keys by tile, as [`score_partition`] counts them for a bracket of that key.
        key (`int`): Key of the tied scores.
        ties (`int`): How many to select.
        theta, forget, retain, spec, offset, backend: As in [`score`].
    """
    with _checked_backend("add_ties", backend, packed, inside, theta, forget, retain) as module:
        module.add_ties(packed, inside, theta, forget, retain, spec, key=key, ties=ties, offset=offset)


# Packed masks


def pack(bits: Tensor, out: Tensor | None = None, *, backend: Backend | None = None) -> Tensor:
    """
    Pack booleans, lowest bit first.

    Args:
        bits (`torch.Tensor` of shape `(numel,)`, bool): Bits.
        out (`torch.Tensor` of shape `(ceil(numel / 8),)`, uint8, *optional*): Written instead of a new tensor.
        backend (`str`, *optional*): As in [`score`].

    Returns:
        `torch.Tensor` of shape `(ceil(numel / 8),)`, uint8.
    """
    with _checked_backend("pack", backend, bits, out) as module:
        return module.pack(bits, out)


def unpack(packed: Tensor, numel: int, *, backend: Backend | None = None) -> Tensor:
    """Boolean tensor of shape `(numel,)` from `ceil(numel / 8)` packed bytes; `backend` as in [`score`]."""
    with _checked_backend("unpack", backend, packed) as module:
        return module.unpack(packed, numel)


def popcount(packed: Tensor, *, backend: Backend | None = None) -> int:
    """Number of set bits; `backend` as in [`score`]."""
    with _checked_backend("popcount", backend, packed) as module:
        return module.popcount(packed)


# Dense and compact tensors


def compress(
    dense: Tensor,
    layout: Layout,
    tensor: int,
    out: Tensor,
    *,
    accumulate: bool = False,
    squares: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """
    Gather the selected elements of a tensor, in rising order, into `out`.

    Args:
        dense (`torch.Tensor` of shape `(numel,)`): Values, for example a gradient.
        layout ([`Layout`]): Positions.
        tensor (`int`): Number of the tensor in the layout.
        out (`torch.Tensor` of shape `(selected of the tensor,)`): Target, written in place and in its own dtype.
        accumulate (`bool`, *optional*, defaults to `False`): Add to `out` instead of overwriting it.
        squares (`torch.Tensor` of shape `(tiles of the tensor,)`, fp32, *optional*):
            Overwritten with partial sums of the squares of `out`.
        backend (`str`, *optional*): As in [`score`].

    Returns:
        `torch.Tensor`: `out`.
    """
    with _checked_backend("compress", backend, dense, out, squares) as module:
        return module.compress(dense, layout, tensor, out, accumulate=accumulate, squares=squares)


def scatter(dense: Tensor, layout: Layout, tensor: int, compact: Tensor, *, backend: Backend | None = None) -> Tensor:
    """
    Write `compact` back to the selected elements of a tensor, in place; every other bit of `dense` stays.

    Args:
        dense (`torch.Tensor` of shape `(numel,)`): Target.
        layout ([`Layout`]): Positions.
        tensor (`int`): Number of the tensor in the layout.
        compact (`torch.Tensor` of shape `(selected of the tensor,)`): Values, in rising order of their positions.
        backend (`str`, *optional*): As in [`score`].

    Returns:
        `torch.Tensor`: `dense`.
    """
    with _checked_backend("scatter", backend, dense, compact) as module:
        return module.scatter(dense, layout, tensor, compact)


# Statistics and steps


def accumulate(total: Tensor, grad: Tensor, *, squared: bool = False, backend: Backend | None = None) -> Tensor:
    """
    Add a gradient, or its square, to a sum in place.

    Args:
        total (`torch.Tensor` of shape `(numel,)`, fp32): Sum.
        grad (`torch.Tensor` of shape `(numel,)`, fp32, bf16 or fp16): Gradient.
        squared (`bool`, *optional*, defaults to `False`): Add the square of the gradient.
        backend (`str`, *optional*): As in [`score`].

    Returns:
        `torch.Tensor`: `total`.
    """
    with _checked_backend("accumulate", backend, total, grad) as module:
        return module.accumulate(total, grad, squared=squared)


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
    backend: Backend | None = None,
) -> None:
    """
    Take one AdamW step (arXiv 1711.05101) of the selected weights, in place, computed in fp32.

    Args:
        weights (sequence of `torch.Tensor` of shape `(numel,)`, fp32 or bf16):
            The tensors of the layout, all of one dtype. Unselected elements keep every bit.
        layout ([`Layout`]): Positions.
        grad (`torch.Tensor` of shape `(selected,)`, fp32 or bf16): Gradients.
        exp_avg, exp_avg_sq (`torch.Tensor` of shape `(selected,)`, fp32, or int8 and uint8): Moments.
        remainder (`torch.Tensor` of shape `(selected,)`, int16, *optional*):
            Low bits of the fp32 master of a bf16 weight. Without it the update is rounded to the weight's dtype.
        exp_avg_exponent, exp_avg_sq_exponent (`torch.Tensor` of shape `(groups,)`, uint8, *optional*):
            Scale of each group as an exponent byte, where the moments have 8 bits.
        step (`int`): Number of this step, from 1.
        lr, beta1, beta2, eps, weight_decay (`float`): As in `torch.optim.AdamW`.
        grad_scale (`float`, *optional*, defaults to `1.0`): Multiplies the gradients, for clipping.
        backend (`str`, *optional*): As in [`score`].
    """
    state = (remainder, exp_avg_exponent, exp_avg_sq_exponent)
    with _checked_backend("adamw", backend, *weights, grad, exp_avg, exp_avg_sq, *state) as module:
        module.adamw(
            weights,
            layout,
            grad,
            exp_avg,
            exp_avg_sq,
            remainder=remainder,
            exp_avg_exponent=exp_avg_exponent,
            exp_avg_sq_exponent=exp_avg_sq_exponent,
            step=step,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            grad_scale=grad_scale,
        )


# Backends


@contextmanager
def _checked_backend(op: str, name: Backend | None, *tensors: Tensor | None) -> Iterator[ModuleType]:
    """The module that an op runs on, chosen for its tensors, with their device as the current one."""
    device = _device_of(op, [tensor for tensor in tensors if tensor is not None])
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # where Triton launches
        yield _backend(name, device)


def _device_of(op: str, tensors: Sequence[Tensor]) -> torch.device:
    """The one device of tensors that are flat and contiguous."""
    device = tensors[0].device
    for tensor in tensors:
        if not (tensor.dim() == 1 and tensor.is_contiguous()):
            raise ValueError(
                f"{op} takes contiguous one-dimensional tensors, got shape {tuple(tensor.shape)} with strides "
                f"{tensor.stride()}; pass `tensor.contiguous().view(-1)`."
            )
        if tensor.device != device:
            raise ValueError(f"{op} takes tensors on one device, got some on {device} and {tensor.device}.")
    return device


def _backend(name: Backend | None, device: torch.device) -> ModuleType:
    if name == "reference" or (name is None and device.type != "cuda"):
        return reference
    if name not in (None, "triton"):
        raise ValueError(f"Unknown backend '{name}'; expected one of reference, triton.")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"backend 'triton' takes tensors on a GPU, got some on '{device}'; leave `backend` at None.")
    from . import triton_ops  # late: Triton exists on Linux alone

    return triton_ops
