"""Make, apply and undo deltas on the folders of models, one tensor at a time."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..files.checkpoint import Checkpoint
from ..files.tensor_file import LazyTensors, bit_patterns, first_few
from ..masks.fingerprint import fingerprint
from ..masks.mask import WeightMask
from ..masks.values import put, take
from .delta import SparseDelta
from .verification import verify


def delta_between(
    base: Checkpoint, unlearned: Checkpoint, mask: WeightMask, *, undo: bool = False, progress: bool = True
) -> SparseDelta:
    """
    Make the delta that turns one model into another. Its values are read from the files when they are used.

    Args:
        base ([`~files.checkpoint.Checkpoint`]): Model before unlearning.
        unlearned ([`~files.checkpoint.Checkpoint`]): Model after unlearning. A `ValueError` is raised if it differs from
            the base in anything but weights of the mask, or if its dtypes cannot hold the weights of the base.
        mask ([`WeightMask`]): Mask of the weights that may differ.
        undo (`bool`, *optional*, defaults to `False`): Whether the delta also holds the old values.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.
    """
    base, unlearned = base.named_as(mask.bits), unlearned.named_as(mask.bits)
    result = verify(base, unlearned, mask, progress=progress)
    if result.config_changes:
        raise ValueError(
            f"The configs in '{base.folder}' and '{unlearned.folder}' differ in {first_few(result.config_changes)}; a delta "
            "holds weights only, and would not make this model."
        )
    if result.narrowed:
        name, (before, after) = next(iter(result.narrowed.items()))
        raise ValueError(
            f"'{name}' is {before} in '{base.folder}' and {after} in '{unlearned.folder}': all of its weights were rounded, "
            "and a delta of this mask would not make this model. Unlearn in the dtype of the base, or with save_delta, "
            "which makes a delta of the rounded base."
        )
    if result.loaded_as:
        name, (saved, declared) = next(iter(result.loaded_as.items()))
        raise ValueError(
            f"'{name}' is {saved} in '{unlearned.folder}', whose config.json declares {declared!r:.80}; save the model in "
            "one dtype."
        )
    if violations := result.violations:
        raise ValueError(
            f"{sum(violations.values()):,} weights outside the mask differ from '{base.folder}', in {first_few(violations)}; "
            "a delta of this mask would not make this model."
        )
    dtypes = {name: unlearned.dtype(name) for name in unlearned}
    new = LazyTensors(mask.bits, lambda name: take(unlearned[name], mask.bits[name]))
    old = LazyTensors(mask.bits, lambda name: take(base[name].to(dtypes[name]), mask.bits[name]))
    return SparseDelta(mask, new, dtypes, base_fingerprint(dtypes, base), old if undo else None)


def base_fingerprint(dtypes: Mapping[str, torch.dtype], base: Checkpoint) -> str:
    """[`~masks.fingerprint.fingerprint`] of a base, over the tensors named in `dtypes` and rounded to these dtypes."""
    return fingerprint(dtypes, {name: base.shape(name) for name in dtypes}, base.read)


def apply_to_folder(delta: SparseDelta, base: Checkpoint, folder: str | os.PathLike) -> Path:
    """
    Apply a delta to its base, and write the unlearned model to a folder.

    Args:
        delta ([`SparseDelta`]): The delta.
        base ([`~files.checkpoint.Checkpoint`]): Base of the delta. A `ValueError` is raised if it is another model.
        folder (`str` or `os.PathLike`): New folder. The mask is written to it as well.

    Returns:
        `pathlib.Path`: `folder`.
    """
    base = base.named_as(delta.dtypes)
    check_base(delta, base)
    _check_no_repeats(delta, base)

    def change(name: str, weights: Tensor) -> Tensor:
        weights = weights.to(delta.dtypes.get(name, weights.dtype))
        return put(weights, delta.mask.bits[name], delta.new[name]) if name in delta.mask.bits else weights

    return base.rewrite(folder, change, delta.dtypes, then=delta.mask.save)


def undo_to_folder(delta: SparseDelta, unlearned: Checkpoint, folder: str | os.PathLike) -> Path:
    """
    Undo a delta, and write the base to a folder.

    Args:
        delta ([`SparseDelta`]): The delta, with old values.
        unlearned ([`~files.checkpoint.Checkpoint`]): Model that the delta made. A `ValueError` is raised if it is
            another model.
        folder (`str` or `os.PathLike`): New folder.

    Returns:
        `pathlib.Path`: `folder`.
    """
    old, unlearned = delta.check_has_old(), unlearned.named_as(delta.dtypes)
    _check_shapes(delta, unlearned)

    def change(name: str, weights: Tensor) -> Tensor:
        if name not in delta.mask.bits:
            return weights
        delta.check_unlearned(name, take(weights, delta.mask.bits[name]))
        return put(weights, delta.mask.bits[name], old[name])

    return unlearned.rewrite(folder, change, {}, then=lambda written: check_base(delta, Checkpoint(written)))


def check_base(delta: SparseDelta, base: Checkpoint) -> None:
    """Raise a `ValueError` unless a checkpoint, rounded to the delta's dtypes, is the delta's base."""
    base = base.named_as(delta.dtypes)
    _check_shapes(delta, base)
    for name in base.keys() - delta.dtypes.keys():  # the fingerprint does not cover these, but transformers loads them
        if not any(_is_copy(base, name, other) for other in delta.dtypes):
            raise ValueError(
                f"'{base.folder}' holds '{name}', which the delta's base does not have; if it is the same model, load it with "
                "transformers and save it again."
            )
    delta.check_fingerprint(base_fingerprint(delta.dtypes, base))


def _check_shapes(delta: SparseDelta, checkpoint: Checkpoint) -> None:
    try:
        delta.check_shapes({name: checkpoint.shape(name) for name in checkpoint})
    except ValueError as error:
        raise ValueError(f"'{checkpoint.folder}': {error}") from error


def _check_no_repeats(delta: SparseDelta, base: Checkpoint) -> None:
    """
    Raise a `ValueError` if a file holds changed weights a second time. transformers ties weights that are equal, and the
    delta would make them differ.
    """
    for name in base.keys() - delta.dtypes.keys():
        for changed in delta.mask.shapes:
            if _is_copy(base, name, changed):
                raise ValueError(
                    f"'{base.folder}' holds '{changed}' a second time, as '{name}', but the delta changes only the first; "
                    "load the base with transformers and save it again, which keeps one of them."
                )


def _is_copy(base: Checkpoint, name: str, other: str) -> bool:
    is_alike = base.shape(name) == base.shape(other) and base.dtype(name) == base.dtype(other)
    return is_alike and torch.equal(bit_patterns(base[name]), bit_patterns(base[other]))
