"""Several forget requests against one base: their deltas merged into one; merged again without one, that is revoked."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..attribution.report import plot_mask
from ..files.atomic import atomic_folder
from ..files.run_folder import PLOT_FILE
from ..files.tensor_file import bit_patterns
from ..masks.info import MaskInfo
from ..masks.mask import WeightMask
from ..masks.positions import bits_at, positions_of
from .delta import SparseDelta


@dataclass(frozen=True)
class Merged:
    """
    Result of [`merge_deltas`].

    Args:
        delta ([`SparseDelta`]): The merged delta; it has old values if all deltas have.
        shared (`dict[str, int]`): By parameter, how many weights several deltas select.
        conflicts (`dict[str, int]`): By parameter, how many of those the deltas give different values.
    """

    delta: SparseDelta
    shared: dict[str, int]
    conflicts: dict[str, int]

    def save(self, folder: str | os.PathLike) -> Path:
        """
        Write the delta, its mask, and a picture of that.

        Args:
            folder (`str` or `os.PathLike`): Folder that does not exist yet, or is empty. It appears when all is written.

        Returns:
            `pathlib.Path`: `folder`.
        """
        with atomic_folder(folder) as temporary:
            self.delta.mask.save(temporary)
            plot_mask(self.delta.mask, temporary / PLOT_FILE)
            self.delta.save(temporary)
        return Path(folder)


@dataclass
class _Parameter:
    """One parameter of the merged delta: packed mask, values, and how many of them are shared and in conflict."""

    bits: Tensor
    new: Tensor
    old: Tensor | None
    shared: int
    conflicts: int


def merge_deltas(
    deltas: Sequence[SparseDelta], weights: Sequence[float] | None = None, *, progress: bool = True
) -> Merged:
    """
    One delta that does what several do.

    A weight that one delta selects, or that all give one value, has that value, bit for bit. For the others, in conflict:

    Args:
        deltas (`list[SparseDelta]`): At least one; all of the same base.
        weights (`list[float]`, *optional*):
            A positive number for each delta: a weight in conflict becomes the mean of the values it is given, so
            weighted, computed in fp64. By default the last delta wins.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        [`Merged`]: The delta, and where the deltas met.
    """
    _check(deltas, weights)
    names = [name for name in deltas[0].dtypes if any(name in delta.mask.bits for delta in deltas)]
    bar = tqdm(names, desc="Merging", unit="tensor", disable=not progress)
    parts = {name: _merge(name, deltas, weights) for name in bar}
    shapes = {name: shape for delta in deltas for name, shape in delta.mask.shapes.items()}
    mask = WeightMask({name: part.bits for name, part in parts.items()}, shapes, _info(deltas))
    old = {name: part.old for name, part in parts.items() if part.old is not None}
    new = {name: part.new for name, part in parts.items()}
    return Merged(
        SparseDelta(mask, new, deltas[0].dtypes, deltas[0].base_fingerprint, old if _have_old(deltas) else None),
        {name: part.shared for name, part in parts.items()},
        {name: part.conflicts for name, part in parts.items()},
    )


def _check(deltas: Sequence[SparseDelta], weights: Sequence[float] | None) -> None:
    if not deltas:
        raise ValueError("No deltas to merge; give at least one.")
    shapes = dict(deltas[0].mask.shapes)
    for number, delta in enumerate(deltas[1:], 2):
        if delta.base_fingerprint != deltas[0].base_fingerprint:
            raise ValueError(
                f"Delta {number} is of another base ({_base(delta)}) than the first ({_base(deltas[0])}); merge deltas "
                "of one base."
            )
        if any(shapes.setdefault(name, shape) != shape for name, shape in delta.mask.shapes.items()):
            raise ValueError(f"Delta {number} has a parameter in another shape; merge deltas of one base.")
        if delta.dtypes != deltas[0].dtypes:
            raise ValueError(f"Delta {number} has weights in other dtypes than the first; unlearn both in one dtype.")
    if weights is not None and len(weights) != len(deltas):
        raise ValueError(f"{len(deltas)} deltas need as many weights, got {len(weights)}.")
    if weights is not None and not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"Weights of deltas must be positive and finite, got {list(weights)}.")


def _base(delta: SparseDelta) -> str:
    return f"{delta.base_model or '?'!r:.200}, {delta.base_fingerprint[:16]!r}"


def _merge(name: str, deltas: Sequence[SparseDelta], weights: Sequence[float] | None) -> _Parameter:
    numel = next(delta.mask.numel_of(name) for delta in deltas if name in delta.mask.bits)
    places = {i: positions_of(d.mask.bits[name], numel) for i, d in enumerate(deltas) if name in d.mask.bits}
    union = torch.cat(list(places.values())).unique()
    count, dtype = len(union), deltas[0].dtypes[name]
    new = torch.empty(count, dtype=dtype)
    old = torch.empty(count, dtype=dtype) if _have_old(deltas) else None
    given, shared, conflict = (torch.zeros(count, dtype=torch.bool) for _ in range(3))
    total, weight = (torch.zeros(count, dtype=torch.float64) for _ in range(2))
    for i, positions in places.items():
        at = torch.searchsorted(union, positions)
        values = deltas[i].new[name]
        shared[at] |= given[at]
        conflict[at] |= given[at] & (bit_patterns(new[at]) != bit_patterns(values))
        given[at], new[at] = True, values
        if old is not None and (kept := deltas[i].old) is not None:
            old[at] = kept[name]
        if weights is not None:
            total[at] += weights[i] * values.double()
            weight[at] += weights[i]
    if weights is not None:
        new[conflict] = (total / weight)[conflict].to(dtype)
    return _Parameter(bits_at(union, numel), new, old, int(shared.sum()), int(conflict.sum()))


def _have_old(deltas: Sequence[SparseDelta]) -> bool:
    return all(delta.old is not None for delta in deltas)


def _info(deltas: Sequence[SparseDelta]) -> MaskInfo:
    """What the merged mask says of itself: the base that all share, and what was merged."""
    infos = [delta.mask.info for delta in deltas]
    base = {}
    for name in ("fingerprint", "base_model", "base_revision"):
        values = {getattr(info, name) for info in infos}
        base[name] = values.pop() if len(values) == 1 else None
    merged = ", ".join(f"{delta.num_selected:,} by {delta.mask.info.score or '?'}" for delta in deltas)
    return MaskInfo(score="merged", merged=merged, **base)
