"""Ops on flat tensors: scores, exact selection, bit masks, compact arrays, AdamW. Knows torch, no model.

Every op takes `backend=None`: `None` decides by device, `"reference"` forces the plain PyTorch specification.
"""

import functools

from torch import Tensor

from . import reference
from .reference import CHUNK, FORMULAS, NON_FINITE_KEY, RADIX_BITS, ScoreSpec, join_split, split

__all__ = [
    "CHUNK",
    "FORMULAS",
    "NON_FINITE_KEY",
    "RADIX_BITS",
    "ScoreSpec",
    "accumulate",
    "adamw",
    "compress",
    "join_split",
    "pack",
    "popcount",
    "scatter",
    "score",
    "score_histogram",
    "score_threshold",
    "split",
    "unpack",
]

_BACKENDS = {"reference": reference}


def _op(specification):
    @functools.wraps(specification)
    def op(*args, backend: str | None = None, **kwargs):
        name = backend or "reference"
        if name not in _BACKENDS:
            raise ValueError(f"Unknown backend '{name}'; expected one of {', '.join(_BACKENDS)}.")
        for tensor in (*args, *kwargs.values()):
            if isinstance(tensor, Tensor) and not (tensor.dim() == 1 and tensor.is_contiguous()):
                raise ValueError(
                    f"{specification.__name__} takes contiguous one-dimensional tensors, got shape "
                    f"{tuple(tensor.shape)} with strides {tensor.stride()}; pass `tensor.contiguous().view(-1)`."
                )
        return getattr(_BACKENDS[name], specification.__name__)(*args, **kwargs)

    return op


accumulate = _op(reference.accumulate)
adamw = _op(reference.adamw)
compress = _op(reference.compress)
pack = _op(reference.pack)
popcount = _op(reference.popcount)
scatter = _op(reference.scatter)
score = _op(reference.score)
score_histogram = _op(reference.score_histogram)
score_threshold = _op(reference.score_threshold)
unpack = _op(reference.unpack)
