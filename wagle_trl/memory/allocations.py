"""Memory of tensors, counted when torch creates them: exactly, on every device, and even for tensors without data."""

import weakref
from collections.abc import Iterable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """
    Counter of the storages that ops create in its context. `current` is the number of bytes now, `peak` the maximum.

    It counts at the dispatcher, so memory that a single op allocates and frees internally is not counted.

    Args:
        held (iterable of `torch.Tensor`, *optional*):
            Tensors that exist before, for example the weights; they count from the start.

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
        self.sizes.clear()  # they were created before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # Arguments that were not counted existed before, and are not counted now
        before = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        self._count(tensor for tensor in _tensors(result) if id(tensor.untyped_storage()) not in before)
        return result

    def reset_peak(self) -> None:
        """Reset `peak` to `current`."""
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


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
