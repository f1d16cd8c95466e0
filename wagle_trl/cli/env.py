"""`wagle env`: versions and devices to paste into a bug report."""

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from .output import Output, key_value_table
from .parser import parse

_PACKAGES = (
    "wagle-trl",
    "torch",
    "triton",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "huggingface_hub",
)


@dataclass
class EnvArguments:
    """No options."""


def run(argv: list[str], command: str) -> Output:
    parse([EnvArguments], argv, command)
    content = {"python": platform.python_version(), "platform": platform.platform(), "device": _device()}
    content |= {name: _version(name) for name in _PACKAGES}
    return Output(content, [key_value_table("Environment", content)])


def _device() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU, {torch.get_num_threads()} threads"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
