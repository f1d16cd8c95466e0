"""Where the statistics of attribution are kept: on the device, on the host, or on disk, a part of the scope at a time."""

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
    """Bytes of one statistic of them."""
    return STATISTIC_BYTES * sum(parameter.numel() for parameter in parameters)


class Stream:
    """
    Batches that can be read again and again.

    Args:
        batches (iterable of batches, or a callable that returns one): A generator is kept as a list.
    """

    def __init__(self, batches: Batches):
        if not callable(batches) and iter(batches) is batches:
            batches = list(batches)
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches() if callable(self._batches) else self._batches)

    @property
    def length(self) -> int | None:
        """Number of batches, where it is known in advance."""
        try:
            return len(cast(Sized, self._batches))
        except TypeError:
            return None


def gather(
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
    A statistic of every stream.

    Args:
        tier ([`Tier`]): Where to keep them.
        parameters (`dict[str, torch.nn.Parameter]`): The scope.
        streams (`dict[str, Stream]`): Batches of each set.
        accumulate (callable): `(parameters, batches, device=None)` to their statistic.
        folder (`pathlib.Path`):
            Where sweeps write. What is there already, for the same `key` and batches, is not computed again.
        key (`str`): What a statistic depends on besides the batches.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        `dict[str, Mapping[str, torch.Tensor]]`: By stream and parameter; those of sweeps are mapped from disk.
    """
    bar = tqdm(unit="batch", disable=not progress)

    def read(name: str, note: str = "") -> Iterator[Batch]:
        bar.set_description(f"Attributing the {name} set{note}")
        for batch in streams[name]:
            yield batch
            bar.update()

    with bar:
        if tier.name == "sweeps":
            return _sweep(tier, parameters, streams, accumulate, read, bar, folder, key)
        _set_total(bar, streams.values())
        device = "cpu" if tier.name == "host" else None
        gathered: dict[str, Mapping[str, Tensor]] = {}
        for name in streams:
            if tier.name == "offload":
                gathered = {done: _to_host(statistic) for done, statistic in gathered.items()}
            gathered[name] = accumulate(parameters, read(name), device=device)
        return gathered


def _sweep(tier, parameters, streams, accumulate, read, bar, folder, key) -> Mapping[str, Mapping[str, Tensor]]:
    folder.mkdir(parents=True, exist_ok=True)
    streams = {name: Stream(list(batches)) for name, batches in streams.items()}  # a loader may shuffle
    stores = {name: Store(folder, name, parameters, _digest(key, batches)) for name, batches in streams.items()}
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


class Store(Mapping[str, Tensor]):
    """
    A statistic on disk, one file a parameter, each whole or not there.

    Args:
        folder (`pathlib.Path`): Where.
        stream (`str`): Set that the statistic belongs to.
        names (iterable of `str`): Parameters that it will have.
        key (`str`): Hash of all it depends on; files with another are ignored, and overwritten.
    """

    def __init__(self, folder: Path, stream: str, names: Iterable[str], key: str):
        self.key = key
        self._paths = {name: folder / f"{stream}-{quote(name, safe='')}.safetensors" for name in names}
        self.done = {name for name, path in self._paths.items() if self._is_whole(path)}

    def _is_whole(self, path: Path) -> bool:
        try:
            with safe_open(path, "pt") as file:
                return (file.metadata() or {}).get("key") == self.key
        except (OSError, SafetensorError):
            return False

    def write(self, statistic: Mapping[str, Tensor]) -> None:
        """Add parameters."""
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
    """Consecutive parameters in at most `parts` groups, of which the largest is as small as it can be."""
    sizes = [parameter.numel() for parameter in parameters.values()]
    low, high = max(sizes, default=0), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_cuts(sizes, middle)) <= parts else (middle + 1, high)
    cuts, items = _cuts(sizes, low), list(parameters.items())
    return [dict(items[first:last]) for first, last in zip(cuts, [*cuts[1:], len(items)])]


def _cuts(sizes: list[int], capacity: int) -> list[int]:
    """Where groups of up to `capacity` start."""
    cuts, room = [], 0
    for i, size in enumerate(sizes):
        if not cuts or size > room:
            cuts.append(i)
            room = capacity
        room -= size
    return cuts


def _to_host(statistic: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in statistic.items()}


def _set_total(bar: tqdm, passes: Iterable[Stream]) -> None:
    """Number of batches in all, from which the bar estimates the time left."""
    lengths = [stream.length for stream in passes]
    known = [length for length in lengths if length is not None]
    bar.total = sum(known) if len(known) == len(lengths) else None


def _check_space(folder: Path, parameters: Iterable[Tensor]) -> None:
    needed = statistic_bytes(parameters)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"Attribution in sweeps needs {needed / 1e9:.1f} GB on the disk of '{folder}', which has {free / 1e9:.1f} GB "
            "left; make room, choose another folder (output_dir), or set attribution_memory to 'host'."
        )


def _digest(key: str, batches: Iterable[Batch]) -> str:
    digest = hashlib.sha256(key.encode())
    for batch in batches:
        for name, tensor in sorted(batch.items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
