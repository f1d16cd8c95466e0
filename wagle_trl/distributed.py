"""The processes of a run. Only this module calls `torch.distributed`; a run of one process needs no process group."""

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def rank() -> int:
    """Index of this process, starting from 0."""
    return dist.get_rank() if _has_group() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _has_group() else 1


def broadcast_(tensor: Tensor) -> Tensor:
    """
    Overwrite a tensor with that of the first process, in place.

    Args:
        tensor (`torch.Tensor` of any shape):
            Tensor of the same shape and dtype in every process, on a device that the process group supports.

    Returns:
        `torch.Tensor`: `tensor`.
    """
    if _has_group():
        dist.broadcast(tensor, src=0)
    return tensor


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor that FSDP2 has sharded; others are returned as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()
