"""The memory that ops allocate."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """
    The storages that ops create: `sizes` in bytes, and `peak`, the most that were alive together.

    Read at the dispatcher, so what a single op takes for itself and gives back inside is not seen.
    """

    def __init__(self):
        super().__init__()
        self.sizes: list[int] = []
        self.peak = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = self._storages((args, kwargs))
        result = func(*args, **(kwargs or {}))
        for storage, size in self._storages(result).items():
            if storage not in known:
                self._alive[storage] = size
                self.sizes.append(size)
        self._alive = {storage: size for storage, size in self._alive.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self._alive.values()))
        return result

    @staticmethod
    def _storages(tree) -> dict[StorageWeakRef, int]:
        storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
        return {StorageWeakRef(storage): storage.nbytes() for storage in storages}


@pytest.fixture
def allocations() -> Allocations:
    """Context manager that records the memory which the ops in it allocate."""
    return Allocations()
