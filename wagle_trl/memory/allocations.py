"""The memory that tensors take, counted where torch creates them: exact, on every device, and without data, too."""

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """
    The storages that ops create while it is entered: `current` and `peak` are the bytes alive now and at most.

    Read at the dispatcher, so what a single op takes for itself and gives back inside is not seen.

    Args:
        held (iterable of `torch.Tensor`, *optional*):
            Tensors that were there before, for example the weights; they count from the start.

    Example:
    ```python
    >>> with Allocations(model.parameters()) as memory:
    ...     loss(model, batch).backward()
    >>> memory.peak
    ```
    """

    def __init__(self, held: Iterable[Tensor] = ()):
        super().__init__()
        self.sizes: list[int] = []
        self.current = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}
        self._count(held)
        self.sizes.clear()  # they were created elsewhere

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # An argument that is met first was there before, held by others: it is theirs to count
        before = {id(storage) for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        self._count(t for t in _tensors(result) if id(t.untyped_storage()) not in before)
        return result

    def reset_peak(self) -> None:
        """Start over from what is alive now."""
        self.peak = self.current

    def _count(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes()
            if key not in self._alive:
                self._alive[key] = weakref.ref(storage, lambda _, key=key, size=size: self._free(key, size))
                self.current += size
                self.sizes.append(size)
        self.peak = max(self.peak, self.current)

    def _free(self, key: int, size: int) -> None:
        del self._alive[key]
        self.current -= size


def _storages(tree) -> list[torch.UntypedStorage]:
    return [tensor.untyped_storage() for tensor in _tensors(tree)]


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
