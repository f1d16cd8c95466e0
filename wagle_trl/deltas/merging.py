"""Merge the deltas of several forget requests against one base.

A request is revoked by merging the others again without it.
"""

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
class MergeResult:
    """
    Result of [`merge_deltas`].

    Args:
        delta ([`SparseDelta`]): The merged delta. It has old values if all deltas have them.
        shared (`dict[str, int]`): Number of weights that several deltas select, by parameter.
        conflicts (`dict[str, int]`): Number of shared weights to which the deltas give different values, by parameter.
    """

    delta: SparseDelta
    shared: dict[str, int]
    conflicts: dict[str, int]

    def save(self, folder: str | os.PathLike) -> Path:
        """
        Write the delta, its mask, and a picture of the mask.

        Args:
            folder (`str` or `os.PathLike`): Folder that does not exist yet or is empty. It appears when all files are
                complete.

        Returns:
            `pathlib.Path`: `folder`.
        """
        with atomic_folder(folder) as temporary:
            self.delta.mask.save(temporary)
            plot_mask(self.delta.mask, temporary / PLOT_FILE)
            self.delta.save(temporary)
        return Path(folder)


@dataclass
class _MergedParameter:
    """One parameter of the merged delta: packed mask, values, and numbers of shared and of conflicting weights."""

    bits: Tensor
    new: Tensor
    old: Tensor | None
    shared: int
    conflicts: int


def merge_deltas(
    deltas: Sequence[SparseDelta], weights: Sequence[float] | None = None, *, progress: bool = True
) -> MergeResult:
    """
    Merge several deltas of one base into one delta.

    A weight that only one delta selects, or to which all deltas give the same value, gets that value, bit for bit.
    Weights to which deltas give different values are in conflict.

    Args:
        deltas (`list[SparseDelta]`): At least one delta; all of the same base.
        weights (`list[float]`, *optional*):
            One positive number per delta. A weight in conflict becomes the mean of its values with these weights,
            computed in fp64. By default the value of the last delta is taken.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        [`MergeResult`]: The merged delta, and the numbers of shared and conflicting weights.
    """
    _check(deltas, weights)
    names = [name for name in deltas[0].dtypes if any(name in delta.mask.bits for delta in deltas)]
    bar = tqdm(names, desc="Merging", unit="tensor", disable=not progress)
    parts = {name: _merge(name, deltas, weights) for name in bar}
    shapes = {name: shape for delta in deltas for name, shape in delta.mask.shapes.items()}
    mask = WeightMask({name: part.bits for name, part in parts.items()}, shapes, _mask_info(deltas))
    old = {name: part.old for name, part in parts.items() if part.old is not None}
    new = {name: part.new for name, part in parts.items()}
    return MergeResult(
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
                f"Delta {number} is of another base ({_base_name(delta)}) than the first ({_base_name(deltas[0])}); merge "
                "deltas of one base."
            )
        if any(shapes.setdefault(name, shape) != shape for name, shape in delta.mask.shapes.items()):
            raise ValueError(f"Delta {number} has a parameter in another shape; merge deltas of one base.")
        if delta.dtypes != deltas[0].dtypes:
            raise ValueError(f"Delta {number} has weights in other dtypes than the first; unlearn both in one dtype.")
    if weights is not None and len(weights) != len(deltas):
        raise ValueError(f"{len(deltas)} deltas need {len(deltas)} weights, got {len(weights)}.")
    if weights is not None and not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"Weights of deltas must be positive and finite, got {list(weights)}.")


def _base_name(delta: SparseDelta) -> str:
    return f"{delta.base_model or '?'!r:.200}, {delta.base_fingerprint[:16]!r}"


def _merge(name: str, deltas: Sequence[SparseDelta], weights: Sequence[float] | None) -> _MergedParameter:
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
    return _MergedParameter(bits_at(union, numel), new, old, int(shared.sum()), int(conflict.sum()))


def _have_old(deltas: Sequence[SparseDelta]) -> bool:
    return all(delta.old is not None for delta in deltas)


def _mask_info(deltas: Sequence[SparseDelta]) -> MaskInfo:
    """Information that the merged mask records: the common base, and the masks that were merged."""
    infos = [delta.mask.info for delta in deltas]
    base = {}
    for name in ("fingerprint", "base_model", "base_revision"):
        values = {getattr(info, name) for info in infos}
        base[name] = values.pop() if len(values) == 1 else None
    merged = ", ".join(f"{delta.num_selected:,} by {delta.mask.info.score or '?'}" for delta in deltas)
    return MaskInfo(score="merged", merged=merged, **base)
