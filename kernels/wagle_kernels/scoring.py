"""Scores, their histograms, and the selection of the largest: no op but [`score`] stores a score."""

import torch
from torch import Tensor

from .backends import Backend, checked_backend
from .spec import Candidates, ScoreSpec


def digit_bits(device: torch.device) -> int:
    """Bits of the digit that [`score_histogram`] counts fastest: a CPU's cache holds more counters than a warp."""
    return 8 if device.type == "cuda" else 16


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
    Compute the score of every weight, in fp32. Scores are never negative.

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
    with checked_backend("score", backend, theta, forget, retain) as module:
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
    Add a histogram of one digit of the score keys to `counts`, without storing scores.

    The key of a score is its fp32 bit pattern. Scores are never negative, so keys order like scores. Only keys whose
    bits above the digit equal `prefix` are counted.

    Args:
        counts (`torch.Tensor` of shape `(2**bits,)`, int64):
            Counters, updated in place. Their number sets the width of the digit.
        shift (`int`): Position of the digit's lowest bit in the key.
        prefix (`int`, *optional*, defaults to `0`): Key bits above the digit, `key >> (shift + bits)`.
        theta, forget, retain, spec, offset, backend: As in [`score`].
    """
    with checked_backend("score_histogram", backend, counts, theta, forget, retain) as module:
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
    Set the mask bits of the keys above the candidates' bracket, and append the keys inside it, in one pass.

    Args:
        packed (`torch.Tensor` of shape `(ceil(numel / 8),)`, uint8): Mask bits, overwritten.
        inside (`torch.Tensor` of shape `(ceil(numel / TILE),)`, int32): Number of keys inside per tile, overwritten.
        candidates ([`Candidates`]): Receives the keys inside the bracket.
        theta, forget, retain, spec, offset, backend: As in [`score`].
    """
    with checked_backend("score_partition", backend, packed, inside, theta, forget, retain) as module:
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
    Set the mask bits of the first `ties` keys that equal `key`, in rising flat order.

    Args:
        packed (`torch.Tensor` of shape `(ceil(numel / 8),)`, uint8): Mask bits, updated in place.
        inside (`torch.Tensor` of shape `(ceil(numel / TILE),)`, int32):
            Number of equal keys per tile, as [`score_partition`] counts them for a bracket of that key alone.
        key (`int`): Key of the tied scores.
        ties (`int`): Number of keys to select.
        theta, forget, retain, spec, offset, backend: As in [`score`].
    """
    with checked_backend("add_ties", backend, packed, inside, theta, forget, retain) as module:
        module.add_ties(packed, inside, theta, forget, retain, spec, key=key, ties=ties, offset=offset)
