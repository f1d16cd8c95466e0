"""Which layers an adapter of PEFT holds sparsely, and which as a whole: what takes the least space.

PEFT gives every layer of a SHiRA adapter room by one rule, and masks are uneven: the fullest layer would fill up all
others. So layers that change much, and those that are not linear, are there as a whole, as PEFT's `modules_to_save`.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig

from ..files.model_class import class_of
from ..files.tensor_file import few


@dataclass(frozen=True)
class Layer:
    """
    A layer that changes.

    Args:
        name (`str`): Its name in the model.
        tensors (`dict[str, tuple[torch.dtype, tuple[int, ...]]]`): Dtype and shape of all its tensors, by full name.
        num_changed (`int`): Number of its weights that change.
        can_be_sparse (`bool`): Whether it is linear and changes in nothing but its weight.
    """

    name: str
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    num_changed: int
    can_be_sparse: bool

    @property
    def weight(self) -> str:
        """Full name of its weight."""
        return f"{self.name}.weight"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of its weight."""
        return self.tensors[self.weight][1]

    @property
    def index_dtype(self) -> torch.dtype:
        """Of rows and columns in the file: PEFT widens them when it loads them, so two bytes do for most layers."""
        return torch.int16 if max(self.shape) <= 2**15 else torch.int32

    @property
    def least_rank(self) -> int:
        """The least SHiRA rank with room for all changes."""
        return math.ceil(self.num_changed / sum(self.shape))

    def num_values(self, rank: int) -> int:
        """Number of values that PEFT wants at a SHiRA rank."""
        return rank * sum(self.shape)

    def is_sparse(self, rank: int) -> bool:
        """Whether it is better sparse than whole at a SHiRA rank, if it can be."""
        if not self.can_be_sparse or not self.least_rank <= rank <= math.prod(self.shape) // sum(self.shape):
            return False
        return self._sparse_bytes(rank) < self._whole_bytes

    def num_bytes(self, rank: int) -> int:
        """Size in an adapter of that rank."""
        return self._sparse_bytes(rank) if self.is_sparse(rank) else self._whole_bytes

    def _sparse_bytes(self, rank: int) -> int:
        return self.num_values(rank) * (torch.float32.itemsize + 2 * self.index_dtype.itemsize)

    @property
    def _whole_bytes(self) -> int:
        return sum(math.prod(shape) * dtype.itemsize for dtype, shape in self.tensors.values())


def changed_layers(
    folder: str | os.PathLike, num_changed: Mapping[str, int], dtypes: Mapping[str, torch.dtype]
) -> list[Layer]:
    """
    The layers of a model that change.

    Args:
        folder (`str` or `os.PathLike`): Folder of the model, with its config.
        num_changed (`dict[str, int]`): For each parameter that changes, how many of its weights do.
        dtypes (`dict[str, torch.dtype]`): Dtypes of the model's parameters.

    Returns:
        `list[Layer]`: The layers. A `ValueError` if a parameter is tied, or none of a module without parts.
    """
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder)
        model = class_of(config).from_config(config)
    modules = {name: module for name, module in model.named_modules() if not list(module.children())}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    uses = Counter(map(id, parameters.values()))
    alone = {name for name, parameter in parameters.items() if uses[id(parameter)] == 1 and _owner(name) in modules}
    if others := num_changed.keys() - alone:
        raise refusal(f"PEFT neither changes nor replaces what is tied or belongs to no single layer: {few(others)}")
    names = dict.fromkeys(map(_owner, num_changed))
    return [_layer(name, modules[name], num_changed, dtypes) for name in names]


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _layer(name: str, module: nn.Module, num_changed: Mapping[str, int], dtypes: Mapping[str, torch.dtype]) -> Layer:
    shapes = {f"{name}.{key}": tuple(parameter.shape) for key, parameter in module.named_parameters()}
    counts = {key: num_changed[key] for key in shapes if key in num_changed}
    return Layer(
        name=name,
        tensors={key: (dtypes[key], shape) for key, shape in shapes.items()},
        num_changed=sum(counts.values()),
        can_be_sparse=isinstance(module, nn.Linear) and counts.keys() == {f"{name}.weight"},
    )


def best_rank(layers: list[Layer]) -> int:
    """The SHiRA rank that makes the adapter smallest. A `ValueError` if no layer is better sparse than whole."""
    ranks = [layer.least_rank for layer in layers if layer.is_sparse(layer.least_rank)]
    if not ranks:
        raise refusal("too large a part of each linear layer changes, or none does")
    return min(ranks, key=lambda rank: sum(layer.num_bytes(rank) for layer in layers))


def refusal(reason: str) -> ValueError:
    """Says what to use instead of an adapter."""
    return ValueError(
        f"No adapter of PEFT can hold this delta: {reason}. Write the model with `wagle apply`, or load it with "
        "`wagle_trl.load_unlearned`."
    )
