"""Parameters that lie in the same memory: training one would change the other."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from torch import Tensor


@dataclass
class _Place:
    """Where a parameter lies: the addresses of its first element and behind its last, and an array of all of them."""

    name: str
    is_trained: bool
    device: str
    start: int
    end: int
    addresses: np.ndarray

    @classmethod
    def of(cls, parameter: Tensor, names: list[str], trained: Container[str]) -> "_Place":
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
        # Only addresses are compared: nothing is read, so the memory may be another device's
        addresses = np.asarray(SimpleNamespace(__array_interface__=interface))
        is_trained = any(name in trained for name in names)
        return cls(names[0], is_trained, str(parameter.device), start, end, addresses)


def check_separate(named_parameters: Iterable[tuple[str, Tensor]], trained: Container[str]) -> None:
    """
    Raise a `ValueError` if a parameter to be trained has a weight in common with another parameter.

    One parameter under two names is tied, and fine. So are views of one buffer that share no element.

    Args:
        named_parameters (iterable of `(str, torch.Tensor)`):
            Parameters; those without memory of their own, as on `meta`, are skipped.
        trained (container of `str`): Names of those to be trained.
    """
    names: dict[Tensor, list[str]] = {}
    for name, parameter in named_parameters:
        names.setdefault(parameter, []).append(name)
    places = [_Place.of(p, names_of, trained) for p, names_of in names.items() if p.data_ptr()]
    reaching: list[_Place] = []  # those that begin before the next one and end behind its beginning
    for place in sorted(places, key=lambda place: (place.device, place.start)):
        reaching = [other for other in reaching if other.device == place.device and other.end > place.start]
        for other in reaching:
            if (place.is_trained or other.is_trained) and np.shares_memory(place.addresses, other.addresses):
                raise ValueError(
                    f"'{other.name}' and '{place.name}' are two parameters in the same memory, so training one would "
                    "change the other; make them one parameter, or give one its own memory with `.clone()`."
                )
        reaching.append(place)
