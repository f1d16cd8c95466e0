"""Verify, from the files alone, that two models differ only in the weights that a mask selects."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import wagle_kernels

from ..files.checkpoint import Checkpoint
from ..files.tensor_file import bit_patterns, first_few
from ..masks.anatomy import layer_of
from ..masks.mask import WeightMask
from .config_changes import config_changes, other_files

PIECE = 2**20  # weights that are compared at once; a multiple of 8, so that pieces are whole bytes of the mask
_THREADS = 2


@dataclass
class WeightChanges:
    """
    Differences between one part of a model and the same part of its base.

    Args:
        numel (`int`): Number of weights.
        selected (`int`): Number of weights that the mask selects.
        moved (`int`): Number of selected weights that differ.
        outside (`int`): Number of unselected weights that differ. It is 0 if the mask was respected.
        non_finite (`int`): Number of weights that are NaN or infinite in the model, selected or not, changed or not.
        measured (`int`): Number of differences that are finite.
        total_change (`float`): Sum of the absolute finite differences.
        max_change (`float`): Largest absolute finite difference.
    """

    numel: int = 0
    selected: int = 0
    moved: int = 0
    outside: int = 0
    non_finite: int = 0
    measured: int = 0
    total_change: float = 0.0
    max_change: float = 0.0

    def add(self, other: "WeightChanges") -> None:
        """Add the differences of another part."""
        self.numel += other.numel
        self.selected += other.selected
        self.moved += other.moved
        self.outside += other.outside
        self.non_finite += other.non_finite
        self.measured += other.measured
        self.total_change += other.total_change
        self.max_change = max(self.max_change, other.max_change)

    def to_dict(self) -> dict[str, Any]:
        """Counts, and the mean and largest absolute change of the weights that differ (`0.0` if none does)."""
        counts = {name: getattr(self, name) for name in ("numel", "selected", "moved", "outside", "non_finite")}
        mean = self.total_change / max(1, self.measured)
        return counts | {"mean_change": mean, "max_change": self.max_change}


@dataclass
class Verification:
    """
    Result of [`verify`].

    Args:
        parameters (`dict[str, WeightChanges]`): Differences by weight tensor, in the order of the files.
        narrowed (`dict[str, tuple[str, str]]`): Dtypes before and after of tensors whose new dtype cannot hold all
            numbers of the old one. These weights were rounded, even those that are equal as numbers.
        loaded_as (`dict[str, tuple[str, str]]`): Tensors that transformers would load in another dtype than they are
            saved in, unless that is so for the base as well. The values are the saved dtype and the one that the config
            declares.
        config_changes (`dict[str, tuple[str, str]]`): Keys of the config that make another model, as from
            [`~deltas.config_changes.config_changes`].
        other_files (`list[str]`): Names of tokenizer, generation and template files that differ. They do not count
            against the model.
    """

    parameters: dict[str, WeightChanges] = field(default_factory=dict)
    narrowed: dict[str, tuple[str, str]] = field(default_factory=dict)
    loaded_as: dict[str, tuple[str, str]] = field(default_factory=dict)
    config_changes: dict[str, tuple[str, str]] = field(default_factory=dict)
    other_files: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether only selected weights differ, and the config makes the same model of them."""
        return not (self.violations or self.narrowed or self.loaded_as or self.config_changes)

    @property
    def total(self) -> WeightChanges:
        """Differences of the whole model."""
        return _sum(self.parameters.values())

    @property
    def layers(self) -> dict[str, WeightChanges]:
        """Differences by number of the layer, or `"-"` for weights outside the layers."""
        names = sorted(dict.fromkeys(map(layer_of, self.parameters)), key=lambda name: (name != "-", len(name), name))
        return {
            layer: _sum(changes for name, changes in self.parameters.items() if layer_of(name) == layer)
            for layer in names
        }

    @property
    def violations(self) -> dict[str, int]:
        """Number of weights outside the mask that differ, for tensors that have such weights."""
        return {name: changes.outside for name, changes in self.parameters.items() if changes.outside}


def verify(base: Checkpoint, unlearned: Checkpoint, mask: WeightMask, *, progress: bool = True) -> Verification:
    """
    Compare every weight of two models bit by bit, and their configs.

    Args:
        base ([`~files.checkpoint.Checkpoint`]): Model before unlearning.
        unlearned ([`~files.checkpoint.Checkpoint`]): Model after unlearning.
        mask ([`WeightMask`]): Mask of the weights that may differ.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        [`Verification`]: All differences.
    """
    base, unlearned = base.named_as(mask.bits), unlearned.named_as(mask.bits)
    check_alike(base, unlearned)
    check_mask(mask, unlearned)
    folders = base.folder, unlearned.folder
    result = Verification(
        loaded_as=_loaded_as(base, unlearned),
        config_changes=config_changes(*folders),
        other_files=other_files(*folders),
    )
    total = sum(map(unlearned.numel, unlearned))
    with tqdm(total=total, desc="Comparing", unit="weight", unit_scale=True, disable=not progress) as bar:
        for name in unlearned:
            result.parameters[name] = weight_changes(base, unlearned, mask.bits.get(name), name, bar)
            if is_rounded(base.dtype(name), unlearned.dtype(name)):
                result.narrowed[name] = dtype_name(base.dtype(name)), dtype_name(unlearned.dtype(name))
    return result


def check_alike(base: Checkpoint, unlearned: Checkpoint) -> None:
    """Raise a `ValueError` unless two models have tensors of the same names and shapes."""
    if alone := base.keys() ^ unlearned.keys():
        raise ValueError(
            f"The two models have different tensors, such as {first_few(alone)}; if they have one architecture, load "
            f"'{base.folder}' with transformers and save it again, which makes the names agree."
        )
    for name in unlearned:
        if base.shape(name) != unlearned.shape(name):
            raise ValueError(
                f"'{name}' has shape {base.shape(name)} in '{base.folder}' and {unlearned.shape(name)} in "
                f"'{unlearned.folder}'; these are not a model and its base."
            )


def check_mask(mask: WeightMask, checkpoint: Checkpoint) -> None:
    """Raise a `ValueError` unless a checkpoint holds every parameter of the mask in its shape."""
    if missing := mask.bits.keys() - checkpoint.keys():
        raise ValueError(
            f"The mask is for another model: '{checkpoint.folder}' lacks {first_few(missing)}. If it is the same model, its files "
            "use other names for tensors than the model does, as for experts of MoE, and cannot be compared with the mask; "
            "to apply a delta, use load_unlearned and save_pretrained."
        )
    for name, shape in mask.shapes.items():
        if checkpoint.shape(name) != shape:
            raise ValueError(
                f"The mask is for another model: '{name}' has shape {checkpoint.shape(name)} in "
                f"'{checkpoint.folder}' and {shape} in the mask."
            )


def weight_changes(
    base: Checkpoint, unlearned: Checkpoint, bits: Tensor | None, name: str, bar: tqdm
) -> WeightChanges:
    def compare(start: int) -> WeightChanges:
        stop = min(start + PIECE, numel)
        before, after = base.read(name, start, stop), unlearned.read(name, start, stop)
        if before.dtype != after.dtype:  # compare as numbers, in a dtype that holds both
            wide = torch.float64 if is_rounded(before.dtype, after.dtype) else after.dtype
            before, after = before.to(wide), after.to(wide)
        return _compare(before, after, None if bits is None else bits[start // 8 : (stop + 7) // 8])

    numel = unlearned.numel(name)
    changes = WeightChanges(selected=0 if bits is None else wagle_kernels.popcount(bits))
    # One piece is read while another is compared. Each worker runs its operations in one thread
    with ThreadPoolExecutor(_THREADS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for piece in pool.map(compare, range(0, numel, PIECE)):
            changes.add(piece)
            bar.update(piece.numel)
    return changes


def _compare(before: Tensor, after: Tensor, allowed: Tensor | None) -> WeightChanges:
    """Differences of flat weights, of which those in the packed mask `allowed` may differ."""
    changes = WeightChanges(numel=len(after), non_finite=_num_non_finite(after))
    # numpy compares 16-bit integers five times as fast as torch on a CPU
    differs = bit_patterns(before).numpy() != bit_patterns(after).numpy()
    places = torch.from_numpy(np.flatnonzero(differs))
    if not len(places):
        return changes
    changed = torch.from_numpy(np.packbits(differs, bitorder="little"))
    changes.moved = 0 if allowed is None else wagle_kernels.popcount(changed & allowed)
    changes.outside = len(places) - changes.moved
    wide = torch.float64 if after.itemsize > 2 else torch.float32
    change = (after[places].to(wide) - before[places].to(wide)).abs().numpy()
    if not np.isfinite(change.max()):  # the maximum is NaN if any element is
        change = change[np.isfinite(change)]
    changes.measured, changes.total_change = len(change), float(change.sum(dtype=np.float64))
    changes.max_change = float(change.max(initial=0.0))
    return changes


def _loaded_as(base: Checkpoint, unlearned: Checkpoint) -> dict[str, tuple[str, str]]:
    """`Verification.loaded_as`. transformers loads all floats in one dtype, except those that it keeps in fp32."""
    declared, found = unlearned.load_dtypes, {}
    is_like_base = declared == base.load_dtypes
    for name in unlearned:
        dtype = unlearned.dtype(name)
        is_alike = is_like_base and dtype == base.dtype(name)
        if dtype.is_floating_point and set(declared.values()) - {dtype_name(dtype)} and not is_alike:
            found[name] = dtype_name(dtype), ", ".join(sorted(set(declared.values())))
    return found


def _num_non_finite(values: Tensor) -> int:
    if not values.is_floating_point():
        return 0
    if values.itemsize == 1:  # an exponent of ones is not enough: one of the 8-bit formats has NaN, but no infinity
        return int((~values.float().isfinite()).sum())
    exponent = bit_patterns(torch.tensor(torch.inf, dtype=values.dtype)).numpy()
    return int(np.count_nonzero((bit_patterns(values).numpy() & exponent) == exponent))


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype in configs, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def is_rounded(before: torch.dtype, after: torch.dtype) -> bool:
    """Whether the dtype `after` cannot hold every number of the dtype `before`."""
    if before == after:
        return False
    if before.is_floating_point and after.is_floating_point:  # `promote_types` does not support float8
        old, new = torch.finfo(before), torch.finfo(after)
        return new.eps > old.eps or new.max < old.max
    return before.is_floating_point or after.is_floating_point or torch.promote_types(before, after) != after


def _sum(parts: Iterable[WeightChanges]) -> WeightChanges:
    total = WeightChanges()
    for part in parts:
        total.add(part)
    return total
