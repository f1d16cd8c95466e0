"""The choice between the two implementations of every op: the specification in plain PyTorch, and Triton kernels."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from . import reference

Backend = Literal["reference", "triton"]


@contextmanager
def checked_backend(op: str, name: Backend | None, *tensors: Tensor | None) -> Iterator[ModuleType]:
    """Check the tensors of an op and give the module that implements it, with their device as the current one."""
    device = _device_of(op, [tensor for tensor in tensors if tensor is not None])
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # where Triton launches
        yield _implementation(name, device)


def _device_of(op: str, tensors: Sequence[Tensor]) -> torch.device:
    """The one device of tensors that are flat and contiguous."""
    device = tensors[0].device
    for tensor in tensors:
        if not (tensor.dim() == 1 and tensor.is_contiguous()):
            raise ValueError(
                f"{op} takes contiguous one-dimensional tensors, got shape {tuple(tensor.shape)} with strides "
                f"{tensor.stride()}; pass `tensor.contiguous().view(-1)`."
            )
        if tensor.device != device:
            raise ValueError(f"{op} takes tensors on one device, got some on {device} and {tensor.device}.")
    return device


def _implementation(name: Backend | None, device: torch.device) -> ModuleType:
    if name == "reference" or (name is None and device.type != "cuda"):
        return reference
    if name not in (None, "triton"):
        raise ValueError(f"Unknown backend '{name}'; expected one of reference, triton.")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"backend 'triton' takes tensors on a GPU, got some on '{device}'; leave `backend` at None.")
    from . import triton_ops  # late: Triton exists only on Linux

    return triton_ops
