"""Deltas between the folders of two models: made, applied and undone on the files, one tensor at a time."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .delta import SparseDelta
from .mask import WeightMask, fingerprint
from .selected import put, take
from .tensor_file import LazyTensors, few
from .verification import is_rounded, verify


def delta_between(
    base: Checkpoint, unlearned: Checkpoint, mask: WeightMask, *, undo: bool = False, progress: bool = True
) -> SparseDelta:
    """
    The delta that makes one model of another; its values are read when they are asked for.

    Args:
        base ([`~checkpoint.Checkpoint`]): The model before.
        unlearned ([`~checkpoint.Checkpoint`]): The model after. A `ValueError` if it differs outside the mask.
        mask ([`WeightMask`]): Which weights differ.
        undo (`bool`, *optional*, defaults to `False`):
            Whether to take the old values, too. A `ValueError` if the base has weights in wider dtypes than the model
            after, which would not come back.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.
    """
    dtypes = {name: unlearned.dtype(name) for name in unlearned}
    if undo:
        _check_exact(base, dtypes)
    result = verify(base, unlearned, mask, progress=progress)
    if result.config_changes:
        raise ValueError(
            f"The configs in '{base.folder}' and '{unlearned.folder}' differ in {few(result.config_changes)}; a delta "
            "holds weights only, and would not give this model."
        )
    if violations := result.violations:
        raise ValueError(
            f"{sum(violations.values()):,} weights outside the mask differ from '{base.folder}', in {few(violations)}; "
            "a delta of this mask would not give this model."
        )
    new = LazyTensors(mask.bits, lambda name: take(unlearned[name], mask.bits[name]))
    old = LazyTensors(mask.bits, lambda name: take(base[name].to(dtypes[name]), mask.bits[name]))
    shapes = {name: base.shape(name) for name in dtypes}
    return SparseDelta(mask, new, dtypes, fingerprint(dtypes, shapes, base.every), old if undo else None)


def apply_to_folder(delta: SparseDelta, base: Checkpoint, folder: str | os.PathLike) -> Path:
    """
    Write the unlearned model of a base.

    Args:
        delta ([`SparseDelta`]): The delta.
        base ([`~checkpoint.Checkpoint`]): Its base; a `ValueError` if it is another one.
        folder (`str` or `os.PathLike`): New folder; it also gets the mask.

    Returns:
        `pathlib.Path`: `folder`.
    """
    shapes = _checked_shapes(delta, base)
    delta.check_fingerprint(shapes, base.every)
    _check_no_repeats(delta, base)

    def change(name: str, weights: Tensor) -> Tensor:
        weights = weights.to(delta.dtypes.get(name, weights.dtype))
        return put(weights, delta.mask.bits[name], delta.new[name]) if name in delta.mask.bits else weights

    return base.rewrite(folder, change, delta.dtypes, then=delta.mask.save)


def undo_to_folder(delta: SparseDelta, unlearned: Checkpoint, folder: str | os.PathLike) -> Path:
    """
    Write the base of an unlearned model; needs the old values.

    Args:
        delta ([`SparseDelta`]): The delta.
        unlearned ([`~checkpoint.Checkpoint`]): The model that it gave; a `ValueError` if it is another one.
        folder (`str` or `os.PathLike`): New folder.

    Returns:
        `pathlib.Path`: `folder`.
    """
    delta.check_has_old()
    shapes = _checked_shapes(delta, unlearned)

    def change(name: str, weights: Tensor) -> Tensor:
        if name not in delta.mask.bits:
            return weights
        delta.check_unlearned(name, take(weights, delta.mask.bits[name]))
        return put(weights, delta.mask.bits[name], delta.old[name])

    def check_base(written: Path) -> None:
        delta.check_fingerprint(shapes, Checkpoint(written).every)

    return unlearned.rewrite(folder, change, {}, then=check_base)


def _checked_shapes(delta: SparseDelta, checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a checkpoint that the delta fits."""
    shapes = {name: checkpoint.shape(name) for name in checkpoint}
    try:
        delta.check_shapes(shapes)
    except ValueError as error:
        raise ValueError(f"'{checkpoint.folder}': {error}") from error
    return shapes


def _check_exact(base: Checkpoint, dtypes: Mapping[str, torch.dtype]) -> None:
    for name, dtype in dtypes.items():
        if name in base and is_rounded(base.dtype(name), dtype):
            raise ValueError(
                f"'{name}' is {base.dtype(name)} in '{base.folder}' and {dtype} in the model after: undoing would give the "
                "base rounded. Keep the base instead, or unlearn in its dtype."
            )


def _check_no_repeats(delta: SparseDelta, base: Checkpoint) -> None:
    """Tied weights that a file holds twice would stay tied in name only: transformers ties what is equal."""
    for name in base.keys() - delta.dtypes.keys():
        for changed, shape in delta.mask.shapes.items():
            if base.shape(name) == shape and torch.equal(base[name], base[changed]):
                raise ValueError(
                    f"'{base.folder}' holds '{changed}' a second time, as '{name}', and the delta changes the first alone; "
                    "load the base with transformers and save it again, which keeps one of them."
                )
