"""Keep the statistics of attribution on the device, on the host, or on disk for one part of the scope at a time."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import cast
from urllib.parse import quote

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..files.atomic import atomic_path
from ..losses.per_sample import Batch
from .config import Tier

Batches = Iterable[Batch] | Callable[[], Iterable[Batch]]
Accumulate = Callable[..., dict[str, Tensor]]

STATISTIC_BYTES = 4  # fp32


def statistic_bytes(parameters: Iterable[Tensor]) -> int:
    """Bytes of one statistic of the parameters."""
    return STATISTIC_BYTES * sum(parameter.numel() for parameter in parameters)


class Stream:
    """
    Batches that can be read several times.

    Args:
        batches (iterable of batches, or a callable that returns one): Batches; those of a generator are kept as a list.
    """

    def __init__(self, batches: Batches):
        if not callable(batches) and iter(batches) is batches:
            batches = list(batches)
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches() if callable(self._batches) else self._batches)

    @property
    def length(self) -> int | None:
        """Number of batches, or `None` if it is not known in advance."""
        try:
            return len(cast(Sized, self._batches))
        except TypeError:
            return None


def compute_statistics(
    tier: Tier,
    parameters: Mapping[str, nn.Parameter],
    streams: Mapping[str, Stream],
    accumulate: Accumulate,
    *,
    folder: Path,
    key: str,
    progress: bool = True,
) -> Mapping[str, Mapping[str, Tensor]]:
    """
    Compute the statistic of every stream.

    Args:
        tier ([`Tier`]): Where to keep the statistics.
        parameters (`dict[str, torch.nn.Parameter]`): Parameters in scope.
        streams (`dict[str, Stream]`): Batches by name of the set.
        accumulate (callable): Function of `(parameters, batches, device=None)` that returns their statistic.
        folder (`pathlib.Path`):
            Folder in which sweeps write. Statistics that it already holds for the same `key` and batches are not
            computed again.
        key (`str`): Text that stands for everything that a statistic depends on besides the batches.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        `dict[str, Mapping[str, torch.Tensor]]`: Statistics by stream and parameter. Those of sweeps are mapped from
        disk.
    """
    bar = tqdm(unit="batch", disable=not progress)

    def read(name: str, note: str = "") -> Iterator[Batch]:
        bar.set_description(f"Attributing the {name} set{note}")
        for batch in streams[name]:
            yield batch
            bar.update()

    with bar:
        if tier.name == "sweeps":
            return _compute_in_sweeps(tier, parameters, streams, accumulate, read, bar, folder, key)
        _set_total(bar, streams.values())
        device = "cpu" if tier.name == "host" else None
        statistics: dict[str, Mapping[str, Tensor]] = {}
        for name in streams:
            if tier.name == "offload":
                statistics = {done: {key: t.cpu() for key, t in found.items()} for done, found in statistics.items()}
            statistics[name] = accumulate(parameters, read(name), device=device)
        return statistics


def _compute_in_sweeps(
    tier, parameters, streams, accumulate, read, bar, folder, key
) -> Mapping[str, Mapping[str, Tensor]]:
    folder.mkdir(parents=True, exist_ok=True)
    streams = {
        name: Stream(list(batches)) for name, batches in streams.items()
    }  # one order for all: loaders may shuffle
    stores = {
        name: StatisticFiles(folder, name, parameters, _digest(key, batches)) for name, batches in streams.items()
    }
    parts = split_evenly(parameters, tier.sweeps)
    passes = [
        (f", sweep {i + 1} of {len(parts)}", name, missing)
        for i, part in enumerate(parts)
        for name, store in stores.items()
        if (missing := {n: p for n, p in part.items() if n not in store.done})
    ]
    _check_space(folder, [p for *_, missing in passes for p in missing.values()])
    _set_total(bar, [streams[name] for _, name, _ in passes])
    for note, name, missing in passes:
        stores[name].write(accumulate(missing, read(name, note)))
    return stores


class StatisticFiles(Mapping[str, Tensor]):
    """
    A statistic on disk, with one file per parameter. A file is either complete or absent.

    Args:
        folder (`pathlib.Path`): Folder of the files.
        stream (`str`): Name of the set that the statistic belongs to.
        names (iterable of `str`): Names of its parameters.
        key (`str`): Hash of everything that the statistic depends on. Files with another key are ignored, and
            overwritten.
    """

    def __init__(self, folder: Path, stream: str, names: Iterable[str], key: str):
        self.key = key
        self._paths = {name: folder / f"{stream}-{quote(name, safe='')}.safetensors" for name in names}
        self.done = {name for name, path in self._paths.items() if self._is_current(path)}

    def _is_current(self, path: Path) -> bool:
        try:
            with safe_open(path, "pt") as file:
                return (file.metadata() or {}).get("key") == self.key
        except (OSError, SafetensorError):
            return False

    def write(self, statistic: Mapping[str, Tensor]) -> None:
        """Write the statistic of some of the parameters."""
        for name, tensor in statistic.items():
            with atomic_path(self._paths[name]) as path:
                save_file({"statistic": tensor}, path, {"key": self.key})
            self.done.add(name)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._paths[name], "pt") as file:
            return file.get_tensor("statistic")

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def split_evenly(parameters: Mapping[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """Split parameters into at most `parts` consecutive groups, so that the largest group is as small as possible."""
    sizes = [parameter.numel() for parameter in parameters.values()]
    low, high = max(sizes, default=0), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_group_starts(sizes, middle)) <= parts else (middle + 1, high)
    starts, items = _group_starts(sizes, low), list(parameters.items())
    return [dict(items[start:stop]) for start, stop in zip(starts, [*starts[1:], len(items)])]


def _group_starts(sizes: list[int], capacity: int) -> list[int]:
    """Indices at which consecutive groups of at most `capacity` start."""
    starts, room = [], 0
    for i, size in enumerate(sizes):
        if not starts or size > room:
            starts.append(i)
            room = capacity
        room -= size
    return starts


def _set_total(bar: tqdm, passes: Iterable[Stream]) -> None:
    """Tell the bar the number of batches in all passes, from which it estimates the time left."""
    lengths = [stream.length for stream in passes]
    known = [length for length in lengths if length is not None]
    bar.total = sum(known) if len(known) == len(lengths) else None


def _check_space(folder: Path, parameters: Iterable[Tensor]) -> None:
    needed = statistic_bytes(parameters)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"Attribution in sweeps needs {needed / 1e9:.1f} GB on the disk of '{folder}', which has {free / 1e9:.1f} GB "
            "free; free some space, choose another folder (output_dir), or set attribution_memory to 'host'."
        )


def _digest(key: str, batches: Iterable[Batch]) -> str:
    digest = hashlib.sha256(key.encode())
    for batch in batches:
        for name, tensor in sorted(batch.items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
