"""Scores, their histograms, and selection in one pass: the specification."""

import torch
from torch import Tensor

from ..hashing import uniform
from ..layout import TILE
from ..spec import Candidates, ScoreSpec
from .bits import pack
from .chunking import chunks


def score(theta: Tensor, forget: Tensor | None, retain: Tensor | None, spec: ScoreSpec, offset: int = 0) -> Tensor:
    """See [`wagle_kernels.score`]."""
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
    match spec.formula, f, r:
        case "wagle", Tensor(), Tensor():
            return (theta.float() - r * (1 / spec.scale)).mul_(f).abs_()
        case "gradient", Tensor(), _:
            return f.abs()
        case "snip", Tensor(), _:
            return (theta.float() * f).abs_()
        case "product", Tensor(), Tensor():
            return (f * r).abs_()
        case "magnitude", _, _:
            return theta.float().abs()
        case "ratio", Tensor(), Tensor():
            return f.abs().div_(r.abs().add_(spec.scale))
        case "random", _, _:
            return uniform(torch.arange(offset, offset + theta.numel(), device=theta.device), spec.seed)
    raise ValueError(f"Formula '{spec.formula}' reads a statistic that is not given.")


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
    """See [`wagle_kernels.score_histogram`]."""
    bins = counts.numel()
    bits = bins.bit_length() - 1
    for _, values in _scored_chunks(theta, forget, retain, spec, offset):
        keys = values.view(torch.int32)
        if shift + bits < 32:
            keys = keys[(keys >> (shift + bits)) == prefix]
        counts += torch.bincount((keys >> shift) & (bins - 1), minlength=bins)


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
    inside.zero_()
    for part, values in _scored_chunks(theta, forget, retain, spec, offset):
        keys = values.view(torch.int32)
        above = keys > candidates.high
        pack(above, out=packed[part.start // 8 : (part.stop + 7) // 8])
        found = ((keys >= candidates.low) ^ above).nonzero().view(-1)
        positions = found + part.start
        inside += torch.bincount(positions // TILE, minlength=inside.numel())
        _append(candidates, keys[found], positions + offset)
        candidates.counts[0] += above.sum()
        candidates.counts[2] = torch.maximum(candidates.counts[2], keys.max())


def _append(candidates: Candidates, keys: Tensor, positions: Tensor) -> None:
    start = int(candidates.counts[1])
    room = candidates.codes[start : start + keys.numel()]
    codes = (candidates.high - keys.long() << candidates.position_bits) + positions
    room.copy_(codes[: room.numel()])
    candidates.counts[1] += keys.numel()


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
    """See [`wagle_kernels.add_ties`]."""
    for part, values in _scored_chunks(theta, forget, retain, spec, offset):
        if ties <= 0:
            return
        keys = values.view(torch.int32)
        tied = keys == key
        first = tied & (tied.cumsum(0) <= ties)
        packed[part.start // 8 : (part.stop + 7) // 8] |= pack(first)
        ties -= int(tied.sum())
