"""Safetensors files, read and written one tensor, or one part of a tensor, at a time."""

import json
import math
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from ..text import printable
from .atomic import atomic_path

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_DIMENSIONS = 64
_MAX_NAME = 400

Value = TypeVar("Value")


def bit_patterns(values: Tensor) -> Tensor:
    """View values as integers, to compare bits: as numbers, 0.0 equals -0.0 and NaN does not equal itself."""
    return values.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.itemsize])


def is_name(name: str) -> bool:
    """Whether `name` is valid for a parameter: untrusted names must not control the terminal that shows them."""
    return name.isprintable() and len(name) <= _MAX_NAME


def is_shape(shape: object) -> bool:
    """Whether `shape` is a list of valid sizes of a tensor."""
    return (
        isinstance(shape, list)
        and len(shape) <= _MAX_DIMENSIONS
        and all(type(size) is int and size >= 0 for size in shape)
        and math.prod(max(1, size) for size in shape) < 2**63
    )


def first_few(names: Iterable[str], limit: int = 3) -> str:
    """List the first names, and the number of others, for a message."""
    names = sorted(printable(name, 100) for name in names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


class _Entry(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


class TensorFile(Mapping[str, Tensor]):
    """
    Tensors of a safetensors file by name, read on access.

    `safetensors.safe_open` maps a file, whose pages stay resident. This class reads it, so no memory stays in use.

    Args:
        path (`str` or `os.PathLike`): File. A `ValueError` if it is not a valid safetensors file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"No file at {self.path}.")
        # The descriptor stays open, also for the header, so that all reads are of one file even if it is replaced
        self._descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        try:
            with safe_open(f"/dev/fd/{self._descriptor}", "np") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                parts = {name: file.get_slice(name) for name in file.offset_keys()}
        except SafetensorError as error:
            raise ValueError(
                f"{self.path} is not a readable safetensors file ({str(error)[:200]!r}); it may be truncated."
            ) from error
        self._entries: dict[str, _Entry] = {}
        offset = 8 + int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        for name, part in parts.items():  # in the order of the data, which safetensors checks for gaps
            self._entries[name] = entry = self._entry(name, part.get_dtype(), part.get_shape(), offset)
            offset += math.prod(entry.shape) * entry.dtype.itemsize

    def _entry(self, name: str, dtype: str, shape: list[int], offset: int) -> _Entry:
        if not is_name(name):
            raise ValueError(
                f"{self.path}: {name[:80]!r} is not a valid name of a tensor; the file is damaged or hostile."
            )
        if not is_shape(shape):
            raise ValueError(f"{self.path}: '{name}' has an invalid shape; the file is damaged or hostile.")
        if dtype not in DTYPES:
            raise ValueError(f"{self.path}: '{name}' has dtype {dtype}; expected one of {', '.join(DTYPES)}.")
        return _Entry(DTYPES[dtype], tuple(shape), offset)

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name).view(self.shape(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading the tensor."""
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor, without reading the tensor."""
        return self._entries[name].dtype

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """
        Read the flat elements `start` to `stop` of a tensor.

        Args:
            name (`str`): Name of the tensor.
            start (`int`, *optional*, defaults to `0`): First element.
            stop (`int`, *optional*): Element after the last; by default the number of elements.

        Returns:
            `torch.Tensor` of shape `(stop - start,)`.
        """
        stop = math.prod(self.shape(name)) if stop is None else stop
        out = torch.empty(stop - start, dtype=self.dtype(name))
        view, place = out.view(torch.uint8).numpy().data, self._entries[name].offset + start * out.itemsize
        while view:
            count = os.preadv(self._descriptor, [view], place)
            if not count:
                raise ValueError(f"{self.path} ends within '{name}'; it was truncated while it was read.")
            view, place = view[count:], place + count
        return out


def write_tensors(
    path: str | os.PathLike,
    specs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    progress: str | None = None,
) -> None:
    """
    Write a safetensors file atomically, holding one tensor at a time.

    Args:
        path (`str` or `os.PathLike`): File.
        specs (`dict[str, tuple[torch.dtype, tuple[int, ...]]]`): Dtype and shape of each tensor.
        read (callable): Function of a name that returns the tensor; called once per tensor.
        metadata (`dict[str, str]`): Metadata of the header.
        progress (`str`, *optional*): Label of a progress bar; by default there is no bar.
    """
    # Wide dtypes first, as safetensors writes them, so that every tensor starts at a multiple of its element size
    names = sorted(specs, key=lambda name: -specs[name][0].itemsize)
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in names:
        dtype, shape = specs[name]
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in tqdm(names, desc=progress, unit="tensor", disable=progress is None):
            tensor = read(name).cpu().contiguous()
            if (tensor.dtype, tuple(tensor.shape)) != specs[name]:
                raise ValueError(f"'{name}' is {tensor.dtype} {tuple(tensor.shape)}, not {specs[name]} as declared.")
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)


class LazyTensors(Mapping[str, Value]):
    """
    Tensors, or objects with tensors, by name, made on access.

    Args:
        names (iterable of `str`): Names, in order.
        make (callable): Function of a name that returns the tensor or object.
    """

    def __init__(self, names, make: Callable[[str], Value]):
        self._names = dict.fromkeys(names)
        self._make = make

    def __getitem__(self, name: str) -> Value:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names
