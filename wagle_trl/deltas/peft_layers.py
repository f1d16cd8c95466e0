"""Decide which layers a PEFT adapter holds sparsely and which it holds whole, so that it takes the least space.

PEFT gives every layer of a SHiRA adapter room by one rule, its rank. Masks are uneven, so a rank with enough room for
the fullest layer would waste space in all others. Layers that change much, and layers that are not linear, are therefore
held whole, as PEFT's `modules_to_save`.
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
from ..files.tensor_file import first_few


@dataclass(frozen=True)
class Layer:
    """
    A layer that changes.

    Args:
        name (`str`): Name of the layer in the model.
        tensors (`dict[str, tuple[torch.dtype, tuple[int, ...]]]`): Dtype and shape of its tensors, by full name.
        num_changed (`int`): Number of its weights that change.
        can_be_sparse (`bool`): Whether the layer is linear, and only its weight changes.
    """

    name: str
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    num_changed: int
    can_be_sparse: bool

    @property
    def weight(self) -> str:
        """Full name of the weight."""
        return f"{self.name}.weight"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.tensors[self.weight][1]

    @property
    def index_dtype(self) -> torch.dtype:
        """Dtype of row and column indices in the file. PEFT widens them on loading, so 16 bits do for most layers."""
        return torch.int16 if max(self.shape) <= 2**15 else torch.int32

    @property
    def least_rank(self) -> int:
        """Smallest SHiRA rank with room for all changes."""
        return math.ceil(self.num_changed / sum(self.shape))

    def num_values(self, rank: int) -> int:
        """Number of values that PEFT expects at a SHiRA rank."""
        return rank * sum(self.shape)

    def is_sparse(self, rank: int) -> bool:
        """Whether the layer can be held sparsely at a SHiRA rank, and takes less space than when held whole."""
        if not self.can_be_sparse or not self.least_rank <= rank <= math.prod(self.shape) // sum(self.shape):
            return False
        return self._sparse_bytes(rank) < self._whole_bytes

    def num_bytes(self, rank: int) -> int:
        """Size of the layer in an adapter of a SHiRA rank."""
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
    List the layers of a model that change. Raise a `ValueError` if a changed parameter is tied, or if its module has
    submodules.

    Args:
        folder (`str` or `os.PathLike`): Folder of the model, with its config.
        num_changed (`dict[str, int]`): Number of weights that change, for each parameter that changes.
        dtypes (`dict[str, torch.dtype]`): Dtypes of the model's parameters.

    Returns:
        `list[Layer]`: The layers.
    """
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder)
        model = class_of(config).from_config(config)
    modules = {name: module for name, module in model.named_modules() if not list(module.children())}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    uses = Counter(map(id, parameters.values()))
    allowed = {name for name, parameter in parameters.items() if uses[id(parameter)] == 1 and _owner(name) in modules}
    if others := num_changed.keys() - allowed:
        raise no_adapter_error(
            f"PEFT cannot change weights that are tied or belong to no single layer: {first_few(others)}"
        )
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
    """SHiRA rank that makes the adapter smallest. Raise a `ValueError` if no layer takes less space sparsely."""
    ranks = [layer.least_rank for layer in layers if layer.is_sparse(layer.least_rank)]
    if not ranks:
        raise no_adapter_error("too large a part of each linear layer changes, or no linear layer changes")
    return min(ranks, key=lambda rank: sum(layer.num_bytes(rank) for layer in layers))


def no_adapter_error(reason: str) -> ValueError:
    """Error for a delta that no adapter can hold; it says what to use instead."""
    return ValueError(
        f"No PEFT adapter can hold this delta: {reason}. Write the model with `wagle apply`, or load it with "
        "`wagle_trl.load_unlearned`."
    )
