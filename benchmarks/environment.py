"""Where and on what a result was measured. Every benchmark writes its results through `write_result`."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from wagle_trl.files.atomic import write_json

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "triton", "transformers", "trl", "peft", "accelerate", "datasets")


def environment() -> dict[str, Any]:
    """Date, commit, device and versions. No host name: a result is about hardware and software, not a machine."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": _device(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def checkouts_beside(before: Path | None) -> dict[str, Path]:
    """This checkout, `"now"`, and another to compare with, `"before"`, if there is one."""
    return {"now": ROOT} | ({"before": before.resolve()} if before else {})


def variables_of(checkout: Path) -> dict[str, str]:
    """Environment variables of a process that runs the code of a checkout, without the Hub."""
    return os.environ | {"PYTHONPATH": f"{checkout}:{checkout / 'kernels'}", "HF_HUB_OFFLINE": "1"}


def write_result(path: str | os.PathLike, payload: dict[str, Any]) -> Path:
    """Write `{"environment": ..., **payload}` as JSON, atomically, and return the path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return write_json(path, {"environment": environment(), **payload})


def _commit() -> str | None:
    """Short hash, with `-dirty` if anything but the results differs from it; outside a git checkout what `COMMIT` says."""
    revision = _git("rev-parse", "--short", "HEAD")
    if revision is None:
        return os.environ.get("COMMIT")  # of a copy without history
    changes = _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return revision if changes == "" else f"{revision}-dirty"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _device() -> dict[str, Any]:
    device: dict[str, Any] = {"cpu": _cpu_model(), "cores": _cores(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        device |= {
            "gpu": properties.name,
            "gpus": torch.cuda.device_count(),
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "runtime": f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}",
        }
    return device


def _cores() -> int | None:
    """Cores this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
