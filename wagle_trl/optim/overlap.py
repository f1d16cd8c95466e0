"""Detect parameters that share memory: training one of them would change the other."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from torch import Tensor


@dataclass
class _Extent:
    """Memory of a parameter: the addresses where it starts and ends, and an array over all of its elements."""

    name: str
    is_trained: bool
    device: str
    start: int
    end: int
    addresses: np.ndarray

    @classmethod
    def of(cls, parameter: Tensor, names: list[str], trained: Container[str]) -> "_Extent":
        start, size = parameter.data_ptr(), parameter.element_size()
        strides = tuple(size * stride for stride in parameter.stride())
        end = start + size + sum((length - 1) * stride for length, stride in zip(parameter.shape, strides))
        interface = {
            "version": 3,
            "typestr": f"|V{size}",
            "data": (start, True),
            "shape": tuple(parameter.shape),
            "strides": strides,
        }
        # Only addresses are compared. Nothing is read, so the memory may belong to another device
        addresses = np.asarray(SimpleNamespace(__array_interface__=interface))
        is_trained = any(name in trained for name in names)
        return cls(names[0], is_trained, str(parameter.device), start, end, addresses)


def check_no_shared_memory(named_parameters: Iterable[tuple[str, Tensor]], trained: Container[str]) -> None:
    """
    Raise a `ValueError` if a parameter to be trained shares an element with another parameter.

    One parameter under two names is tied, which is allowed. Views of one buffer that share no element are allowed too.

    Args:
        named_parameters (iterable of `(str, torch.Tensor)`):
            Parameters. Those without memory, such as on the device `meta`, are skipped.
        trained (container of `str`): Names of the parameters to be trained.
    """
    names: dict[Tensor, list[str]] = {}
    for name, parameter in named_parameters:
        names.setdefault(parameter, []).append(name)
    extents = [_Extent.of(p, names_of, trained) for p, names_of in names.items() if p.data_ptr()]
    active: list[_Extent] = []  # those that start before the current one and end after its start
    for extent in sorted(extents, key=lambda extent: (extent.device, extent.start)):
        active = [other for other in active if other.device == extent.device and other.end > extent.start]
        for other in active:
            if (extent.is_trained or other.is_trained) and np.shares_memory(extent.addresses, other.addresses):
                raise ValueError(
                    f"'{other.name}' and '{extent.name}' are two parameters in the same memory, so training one would "
                    "change the other; make them one parameter, or give one its own memory with `.clone()`."
                )
        active.append(extent)
