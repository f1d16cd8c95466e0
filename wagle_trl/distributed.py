"""The processes of a run: the only module that calls `torch.distributed`. A run of one process needs no process group."""

import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _is_group() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _is_group() else 1


def broadcast_(tensor: Tensor) -> Tensor:
    """
    Replace a tensor by that of the first process, in place.

    Args:
        tensor (`torch.Tensor` of any shape): The same shape and dtype in every process, on a device that the process group
            can reach.

    Returns:
        `torch.Tensor`: `tensor`.
    """
    if _is_group():
        dist.broadcast(tensor, src=0)
    return tensor


def _is_group() -> bool:
    return dist.is_available() and dist.is_initialized()
