"""Proof, from the files alone, that two models differ in nothing but the weights that a mask selects."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

import wagle_kernels

from ..files.checkpoint import Checkpoint
from ..files.tensor_file import bit_patterns, few
from ..masks.anatomy import layer_of
from ..masks.mask import WeightMask
from .config_changes import config_changes, other_files

PIECE = 2**20  # weights that are compared at once: a multiple of 8
_THREADS = 2


@dataclass
class Movement:
    """
    How one part of a model differs from the same part of its base.

    Args:
        numel (`int`): Number of weights.
        selected (`int`): How many the mask selects.
        moved (`int`): How many of the selected ones differ.
        outside (`int`): How many of the others differ: none, if the mask was respected.
        non_finite (`int`): How many weights are NaN or infinite after, selected or not, moved or not.
        measured (`int`): How many differences are finite numbers.
        total_change (`float`): Sum of the absolute values of these, in the units of the weights.
        max_change (`float`): The largest of them.
    """

    numel: int = 0
    selected: int = 0
    moved: int = 0
    outside: int = 0
    non_finite: int = 0
    measured: int = 0
    total_change: float = 0.0
    max_change: float = 0.0

    def add(self, other: "Movement") -> None:
        """Count another part in."""
        self.numel += other.numel
        self.selected += other.selected
        self.moved += other.moved
        self.outside += other.outside
        self.non_finite += other.non_finite
        self.measured += other.measured
        self.total_change += other.total_change
        self.max_change = max(self.max_change, other.max_change)

    def to_dict(self) -> dict[str, Any]:
        """Counts, the mean absolute change of the weights that differ (`0.0` if none does) and the largest."""
        counts = {name: getattr(self, name) for name in ("numel", "selected", "moved", "outside", "non_finite")}
        mean = self.total_change / max(1, self.measured)
        return counts | {"mean_change": mean, "max_change": self.max_change}


@dataclass
class Verification:
    """
    Result of [`verify`].

    Args:
        parameters (`dict[str, Movement]`): Of every weight tensor, in the order of the files.
        narrowed (`dict[str, tuple[str, str]]`): Dtypes before and after of tensors whose dtype after cannot hold all
            numbers of the one before: even where these weights are equal as numbers, they were rounded on the way.
        loaded_as (`dict[str, tuple[str, str]]`): Of tensors that transformers would load in another dtype than they are
            saved in, and not the base's alike: that dtype, and the one the config declares.
        config_changes (`dict[str, tuple[str, str]]`): What makes the config that of another model, see
            [`~deltas.config_changes.config_changes`].
        other_files (`list[str]`): Names of tokenizer, generation and template files that differ, which proves nothing.
    """

    parameters: dict[str, Movement] = field(default_factory=dict)
    narrowed: dict[str, tuple[str, str]] = field(default_factory=dict)
    loaded_as: dict[str, tuple[str, str]] = field(default_factory=dict)
    config_changes: dict[str, tuple[str, str]] = field(default_factory=dict)
    other_files: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing but selected weights differs, and the config makes the same model of them."""
        return not (self.violations or self.narrowed or self.loaded_as or self.config_changes)

    @property
    def total(self) -> Movement:
        """Of the whole model."""
        return _sum(self.parameters.values())

    @property
    def layers(self) -> dict[str, Movement]:
        """Of every layer by its number, `"-"` outside the layers."""
        names = sorted(dict.fromkeys(map(layer_of, self.parameters)), key=lambda name: (name != "-", len(name), name))
        return {
            layer: _sum(movement for name, movement in self.parameters.items() if layer_of(name) == layer)
            for layer in names
        }

    @property
    def violations(self) -> dict[str, int]:
        """Number of weights outside the mask that differ, of the tensors that have some."""
        return {name: movement.outside for name, movement in self.parameters.items() if movement.outside}


def verify(base: Checkpoint, unlearned: Checkpoint, mask: WeightMask, *, progress: bool = True) -> Verification:
    """
    Compare every weight of two models, bit by bit, and their configs.

    Args:
        base ([`~files.checkpoint.Checkpoint`]): The model before.
        unlearned ([`~files.checkpoint.Checkpoint`]): The model after.
        mask ([`WeightMask`]): Which weights may differ.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        [`Verification`]: What differs.
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
            result.parameters[name] = _movement(base, unlearned, mask.bits.get(name), name, bar)
            if is_rounded(base.dtype(name), unlearned.dtype(name)):
                result.narrowed[name] = dtype_name(base.dtype(name)), dtype_name(unlearned.dtype(name))
    return result


def check_alike(base: Checkpoint, unlearned: Checkpoint) -> None:
    """A `ValueError` unless two models have tensors of the same names and shapes."""
    if alone := base.keys() ^ unlearned.keys():
        raise ValueError(
            f"The two models have different tensors, such as {few(alone)}; if they are one architecture, load "
            f"'{base.folder}' with transformers and save it again, which names tensors alike."
        )
    for name in unlearned:
        if base.shape(name) != unlearned.shape(name):
            raise ValueError(
                f"'{name}' has shape {base.shape(name)} in '{base.folder}' and {unlearned.shape(name)} in "
                f"'{unlearned.folder}'; these are not a model and its base."
            )


def check_mask(mask: WeightMask, checkpoint: Checkpoint) -> None:
    """A `ValueError` unless every parameter of the mask is there, in its shape."""
    if missing := mask.bits.keys() - checkpoint.keys():
        raise ValueError(
            f"The mask is for another model: '{checkpoint.folder}' lacks {few(missing)}. If it is the same model, its files "
            "name tensors otherwise than the model does, such as experts of MoE, and cannot be compared with the mask; "
            "to make a model of a delta, use load_unlearned and save_pretrained."
        )
    for name, shape in mask.shapes.items():
        if checkpoint.shape(name) != shape:
            raise ValueError(
                f"The mask is for another model: '{name}' has shape {checkpoint.shape(name)} in "
                f"'{checkpoint.folder}' and {shape} in the mask."
            )


def _movement(base: Checkpoint, unlearned: Checkpoint, bits: Tensor | None, name: str, bar: tqdm) -> Movement:
    def compare(start: int) -> Movement:
        stop = min(start + PIECE, numel)
        before, after = base.read(name, start, stop), unlearned.read(name, start, stop)
        if before.dtype != after.dtype:  # as numbers, in a dtype that holds both
            wide = torch.float64 if is_rounded(before.dtype, after.dtype) else after.dtype
            before, after = before.to(wide), after.to(wide)
        return _compare(before, after, None if bits is None else bits[start // 8 : (stop + 7) // 8])

    numel = unlearned.numel(name)
    movement = Movement(selected=0 if bits is None else wagle_kernels.popcount(bits))
    # One piece is read while another is compared; in a thread of its own each operation needs no further ones
    with ThreadPoolExecutor(_THREADS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for piece in pool.map(compare, range(0, numel, PIECE)):
            movement.add(piece)
            bar.update(piece.numel)
    return movement


def _compare(before: Tensor, after: Tensor, allowed: Tensor | None) -> Movement:
    """Movement of flat weights, of which the packed mask `allowed` may differ."""
    movement = Movement(numel=len(after), non_finite=_num_non_finite(after))
    # In numpy: on a CPU its comparison of 16-bit integers is five times as fast
    differs = bit_patterns(before).numpy() != bit_patterns(after).numpy()
    places = torch.from_numpy(np.flatnonzero(differs))
    if not len(places):
        return movement
    changed = torch.from_numpy(np.packbits(differs, bitorder="little"))
    movement.moved = 0 if allowed is None else wagle_kernels.popcount(changed & allowed)
    movement.outside = len(places) - movement.moved
    wide = torch.float64 if after.itemsize > 2 else torch.float32
    change = (after[places].to(wide) - before[places].to(wide)).abs().numpy()
    if not np.isfinite(change.max()):  # NaN if there is one
        change = change[np.isfinite(change)]
    movement.measured, movement.total_change = len(change), float(change.sum(dtype=np.float64))
    movement.max_change = float(change.max(initial=0.0))
    return movement


def _loaded_as(base: Checkpoint, unlearned: Checkpoint) -> dict[str, tuple[str, str]]:
    """See [`Verification`]. Transformers loads all floats in one dtype, but for such as norms that it keeps in fp32."""
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
    if values.itemsize == 1:  # one of these formats has NaN, but no infinity
        return int((~values.float().isfinite()).sum())
    exponent = bit_patterns(torch.tensor(torch.inf, dtype=values.dtype)).numpy()
    return int(np.count_nonzero((bit_patterns(values).numpy() & exponent) == exponent))


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as configs name it, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def is_rounded(before: torch.dtype, after: torch.dtype) -> bool:
    """Whether the dtype `after` cannot hold every number of the dtype `before`."""
    if before == after:
        return False
    if before.is_floating_point and after.is_floating_point:  # of float8 `promote_types` knows nothing
        old, new = torch.finfo(before), torch.finfo(after)
        return new.eps > old.eps or new.max < old.max
    return before.is_floating_point or after.is_floating_point or torch.promote_types(before, after) != after


def _sum(movements) -> Movement:
    total = Movement()
    for movement in movements:
        total.add(movement)
    return total
