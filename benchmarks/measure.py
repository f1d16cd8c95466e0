"""Time and memory of calls on a CPU or GPU, next to the bandwidth of a plain copy, in one table, JSON and CSV."""

import csv
import os
import resource
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.environment import write_result

FLUSH_BYTES = 256 * 2**20  # several times any last-level cache
COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 2 * 2**30}
SAMPLED_SECONDS = 0.2  # CPU memory is sampled every 20 ms


@dataclass(frozen=True)
class Measurement:
    """Seconds of one call, and its peak memory over what was allocated before it, both after warming up."""

    median: float
    p20: float
    p80: float
    peak_bytes: int


@dataclass(frozen=True)
class Row:
    """One line of the table. `size` counts weights; `bytes_moved` is what the provider must read and write at least."""

    kernel: str
    provider: str
    size: int
    dtype: str
    density: float | None
    median_ms: float
    p20_ms: float
    p80_ms: float
    bytes_moved: int | None
    share_of_copy_bandwidth: float | None
    peak_bytes: int
    note: str = ""


_COLUMNS = [field.name for field in fields(Row)]


class PeakMemory:
    """Peak resident memory, sampled every 20 ms: the process's own high-water mark would count the inputs' making."""

    def __enter__(self):
        self.bytes, self._done = resident_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes, resident_bytes())

    def __exit__(self, *exception):
        self._done.set()
        self._thread.join()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(
    call: Callable, device: torch.device, *, repeats: int = 50, warmup: int = 5, flush_cache: bool = True
) -> Measurement:
    """[`compare`] of one provider."""
    return compare({"": call}, device, repeats, warmup=warmup, flush_cache=flush_cache)[""]


def compare(
    calls: dict[str, Callable], device: torch.device, rounds: int = 50, *, warmup: int = 5, flush_cache: bool = True
) -> dict[str, Measurement]:
    """Every provider once a round, so that a drift of the machine meets all. Flushing: each call starts in a cold cache."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device).zero_ if flush_cache else lambda: None
    seconds = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    for call in calls.values():
        for _ in range(warmup):
            call()
    peaks = {name: _peak_bytes(call, device) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            flush()
            samples[name].append(seconds(call))
    return {name: Measurement(*_quantiles(samples[name]), peaks[name]) for name in calls}


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy within the memory of `device` that no cache holds."""
    source = torch.randn(COPY_BYTES[device.type] // 4, device=device)  # zeros can run faster than data
    target = torch.empty_like(source)
    return 2 * source.nbytes / measure(lambda: target.copy_(source), device, repeats=20, flush_cache=False).median


def make_row(
    kernel: str,
    provider: str,
    measurement: Measurement,
    *,
    size: int,
    dtype: torch.dtype,
    bandwidth: float,
    density: float | None = None,
    bytes_moved: int | None = None,
    note: str = "",
) -> Row:
    """A [`Row`]; `bandwidth` is that of [`copy_bandwidth`]."""
    share = None if bytes_moved is None else bytes_moved / measurement.median / bandwidth
    times = (1000 * seconds for seconds in (measurement.median, measurement.p20, measurement.p80))
    dtype = str(dtype).removeprefix("torch.")
    return Row(kernel, provider, size, dtype, density, *times, bytes_moved, share, measurement.peak_bytes, note)


def show(rows: Iterable[Row]) -> None:
    """Print the rows."""
    table = Table(*_COLUMNS)
    for row in rows:
        table.add_row(*map(_cell, asdict(row).values()))
    Console(width=200).print(table)  # a log has no width of its own


def write(rows: Iterable[Row], path: str | os.PathLike, **payload: Any) -> None:
    """Write the rows with `payload` and the environment to `path` as JSON, and alone to a CSV beside it."""
    lines = [asdict(row) for row in rows]
    path = write_result(path, {**payload, "rows": lines})
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([_COLUMNS, *(line.values() for line in lines)])


def _cuda_seconds(call: Callable) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def _cpu_seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _peak_bytes(call: Callable, device: torch.device) -> int:
    """Apart from the timing: sampling would disturb it. On a CPU a lower bound, since a short peak can be missed."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with PeakMemory() as peak:
        before, start = peak.bytes, time.perf_counter()
        while time.perf_counter() < start + SAMPLED_SECONDS:
            call()
    return peak.bytes - before


def _quantiles(samples: list[float]) -> list[float]:
    return torch.tensor(samples, dtype=torch.float64).quantile(torch.tensor([0.5, 0.2, 0.8]).double()).tolist()


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
