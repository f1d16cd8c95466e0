"""Ops on flat tensors: scores, exact selection, bit masks, compact arrays, AdamW. Knows torch, no model.

Every op takes `backend=None`: `None` decides by device, `"reference"` forces the plain PyTorch specification,
`"triton"` the Triton kernels (on a GPU, or interpreted where `TRITON_INTERPRET=1` was set before the first import).
"""

import functools
import os
from collections.abc import Iterator
from contextlib import nullcontext

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


def _op(specification):
    name = specification.__name__

    @functools.wraps(specification)
    def op(*args, backend: str | None = None, **kwargs):
        device = None
        for tensor in _tensors((*args, *kwargs.values())):
            if not (tensor.dim() == 1 and tensor.is_contiguous()):
                raise ValueError(
                    f"{name} takes contiguous one-dimensional tensors, got shape {tuple(tensor.shape)} with strides "
                    f"{tensor.stride()}; pass `tensor.contiguous().view(-1)`."
                )
            device = device or tensor.device
            if tensor.device != device:
                raise ValueError(f"{name} takes tensors on one device, got some on {device} and {tensor.device}.")
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # where Triton launches
            return getattr(_backend(backend, device), name)(*args, **kwargs)

    return op


def _tensors(values) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _backend(name: str | None, device: torch.device):
    if name == "reference" or (name is None and device.type != "cuda"):
        return reference
    if name not in (None, "triton"):
        raise ValueError(f"Unknown backend '{name}'; expected one of reference, triton.")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"backend 'triton' takes tensors on a GPU, got some on '{device}'; leave `backend` at None.")
    from . import triton_ops  # late: Triton exists on Linux alone

    return triton_ops


def digit_bits(device: torch.device) -> int:
    """Bits of the digit that [`score_histogram`] counts fastest: a CPU's cache holds many counters, a warp's few."""
    return 8 if device.type == "cuda" else 16


accumulate = _op(reference.accumulate)
adamw = _op(reference.adamw)
add_ties = _op(reference.add_ties)
compress = _op(reference.compress)
pack = _op(reference.pack)
popcount = _op(reference.popcount)
scatter = _op(reference.scatter)
score = _op(reference.score)
score_histogram = _op(reference.score_histogram)
score_partition = _op(reference.score_partition)
unpack = _op(reference.unpack)
