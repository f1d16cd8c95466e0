"""Export a delta as an adapter that PEFT loads without wagle_trl.

PEFT has two sparse formats. SHiRA adds fp32 values to the weights and rounds the sums, so that bf16 weights come out
bit for bit. Super-Tuning (https://arxiv.org/abs/2607.09287) rounds the values as well, so that bf16 weights that shrink
or change sign are often wrong. It also needs a newer PEFT, and ranks all weights of a layer when it is loaded.
"""

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from peft import ShiraConfig, TaskType
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor
from tqdm.auto import tqdm

from ..files.atomic import atomic_folder
from ..files.checkpoint import Checkpoint
from ..files.tensor_file import bit_patterns, write_tensors
from ..masks.positions import positions_of
from ..masks.values import put, take
from .delta import SparseDelta
from .on_disk import check_base
from .peft_layers import Layer, best_rank, changed_layers, no_adapter_error

REQUIRES = "peft>=0.17"  # to load an adapter: the first version with SHiRA
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class ExportedAdapter:
    """
    Result of [`export_adapter`].

    Args:
        folder (`pathlib.Path`): Folder of the adapter.
        num_changed (`int`): Number of weights that the adapter changes: selected weights whose bits differ from the
            base's.
        num_inexact (`int`): Number of weights that do not get the bits of the unlearned model.
        largest_error (`float`): Largest absolute error of these weights.
        sparse (`list[str]`): Layers that are held sparsely: their changes, padded with zeros to the size that PEFT
            expects.
        whole (`list[str]`): Layers that are held whole.
        num_bytes (`int`): Size of the adapter's files.
    """

    folder: Path
    num_changed: int
    num_inexact: int
    largest_error: float
    sparse: list[str]
    whole: list[str]
    num_bytes: int


def export_adapter(
    delta: SparseDelta, base: Checkpoint, folder: str | os.PathLike, *, progress: bool = True
) -> ExportedAdapter:
    """
    Write a delta as a SHiRA adapter (https://arxiv.org/abs/2406.13175).

    `PeftModel.from_pretrained(model, folder)` then makes the unlearned model without wagle_trl, if `model` is the base in
    the dtype of the delta. It takes PEFT 0.17 or newer. Call `merge_and_unload()` to save the time of adding the values
    in each forward pass. With `low_cpu_mem_usage=True` or `autocast_adapter_dtype=False`, PEFT rounds the values of a
    bf16 or fp16 model, and some weights come out wrong.

    Args:
        delta ([`SparseDelta`]):
            The delta. A `ValueError` is raised if no adapter can hold it, because it changes nothing, changes a tied
            weight, or changes so much of every layer that whole layers take less space.
        base ([`~files.checkpoint.Checkpoint`]):
            Base of the delta, with its config. A `ValueError` is raised if it is another model.
        folder (`str` or `os.PathLike`):
            New folder. `adapter_config.json` and `adapter_model.safetensors` are written to it.
        progress (`bool`, *optional*, defaults to `True`): Whether to show progress bars.

    Returns:
        [`ExportedAdapter`]: Content of the adapter, and how exactly it makes the unlearned model.
    """
    check_base(delta, base)
    bar = tqdm(delta.mask.bits, desc="Comparing", unit="tensor", disable=not progress)
    errors = {name: _sparse_error(_changes(delta, base, name)) for name in bar}
    num_changed = {name: error.num_changed for name, error in errors.items() if error.num_changed}
    if not num_changed:
        raise no_adapter_error("its values are those of the base")
    layers = changed_layers(base.folder, num_changed, delta.dtypes)
    rank = best_rank(layers)
    with atomic_folder(folder) as temporary:
        _config(delta, layers, rank).save_pretrained(str(temporary))
        _write_weights(temporary / SAFETENSORS_WEIGHTS_NAME, delta, base, layers, rank, progress)
    sparse = [layer for layer in layers if layer.is_sparse(rank)]
    return ExportedAdapter(
        folder=Path(folder),
        num_changed=sum(num_changed.values()),
        num_inexact=sum(errors[layer.weight].num_inexact for layer in sparse),
        largest_error=max(errors[layer.weight].largest_error for layer in sparse),
        sparse=[layer.name for layer in sparse],
        whole=[layer.name for layer in layers if not layer.is_sparse(rank)],
        num_bytes=sum(path.stat().st_size for path in Path(folder).iterdir()),
    )


# Changes


class _Changes(NamedTuple):
    """Weights of a parameter that change: their flat positions, int64, and their values before and after."""

    positions: Tensor
    old: Tensor
    new: Tensor

    @property
    def added(self) -> Tensor:
        return self.new.float() - self.old.float()


def _changes(delta: SparseDelta, base: Checkpoint, name: str) -> _Changes:
    bits, new = delta.mask.bits[name].cpu(), delta.new[name].cpu()
    old = take(base[name].to(new.dtype), bits)
    changed = bit_patterns(old) != bit_patterns(new)
    return _Changes(positions_of(bits, delta.mask.numel_of(name))[changed], old[changed], new[changed])


class _SparseError(NamedTuple):
    """Error of the weights of a parameter when they are made from the base and sparse fp32 values."""

    num_changed: int
    num_inexact: int
    largest_error: float


def _sparse_error(changes: _Changes) -> _SparseError:
    made = (changes.old + changes.added).to(changes.new.dtype)  # PEFT adds in fp32, and rounds once
    inexact = bit_patterns(made) != bit_patterns(changes.new)
    errors = (made.double() - changes.new.double())[inexact].abs().tolist()
    return _SparseError(len(made), len(errors), max(errors, default=0.0))


# Files


def _config(delta: SparseDelta, layers: list[Layer], rank: int) -> ShiraConfig:
    return ShiraConfig(
        base_model_name_or_path=delta.base_model,
        revision=delta.base_revision,
        task_type=TaskType.CAUSAL_LM,
        target_modules="|".join(re.escape(layer.name) for layer in layers if layer.is_sparse(rank)),
        modules_to_save=[layer.name for layer in layers if not layer.is_sparse(rank)] or None,
        r=rank,
        # In inference mode, PEFT accepts a mask type that it does not know, and takes the positions from the file
        mask_type="custom",  # pyright: ignore[reportArgumentType]
        inference_mode=True,
    )


def _write_weights(
    path: Path, delta: SparseDelta, base: Checkpoint, layers: list[Layer], rank: int, progress: bool
) -> None:
    specs, makers = {}, {}
    for layer in layers:
        if layer.is_sparse(rank):
            count, key = layer.num_values(rank), f"{_PREFIX}{layer.name}"
            specs[f"{key}.shira_weight"] = (torch.float32, (count,))
            specs[f"{key}.shira_indices"] = (layer.index_dtype, (2, count))
            makers[f"{key}.shira_weight"] = partial(_values, delta, base, layer, count)
            makers[f"{key}.shira_indices"] = partial(_indices, delta, base, layer, count)
        else:
            specs |= {f"{_PREFIX}{name}": spec for name, spec in layer.tensors.items()}
            makers |= {f"{_PREFIX}{name}": partial(_unlearned, delta, base, name) for name in layer.tensors}
    label = f"Writing {path.name}" if progress else None
    write_tensors(path, specs, lambda key: makers[key](), {"format": "pt"}, progress=label)


def _values(delta: SparseDelta, base: Checkpoint, layer: Layer, count: int) -> Tensor:
    added = _changes(delta, base, layer.weight).added
    return torch.cat([added, torch.full((count - len(added),), -0.0)])  # padding of 0.0 would turn -0.0 into 0.0


def _indices(delta: SparseDelta, base: Checkpoint, layer: Layer, count: int) -> Tensor:
    """Rows and columns of the weights that change, then of other weights up to `count`."""
    changed = _changes(delta, base, layer.weight).positions
    free = torch.ones(count, dtype=torch.bool)
    free[changed[changed < count]] = False
    positions = torch.cat([changed, free.nonzero().view(-1)[: count - len(changed)]])
    columns = layer.shape[1]
    return torch.stack([positions // columns, positions % columns]).to(layer.index_dtype)


def _unlearned(delta: SparseDelta, base: Checkpoint, name: str) -> Tensor:
    weights = base[name].to(delta.dtypes[name])
    return put(weights, delta.mask.bits[name], delta.new[name]) if name in delta.mask.bits else weights
