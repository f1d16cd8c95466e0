"""Memory that is available to this process on a device."""

import psutil
import torch


def usable_memory(device: torch.device) -> int:
    """Number of bytes on `device` that this process has allocated or could allocate."""
    if device.type != "cuda":
        return psutil.virtual_memory().available + psutil.Process().memory_info().rss
    free, total = torch.cuda.mem_get_info(device)
    allowed = round(torch.cuda.get_per_process_memory_fraction(device) * total)
    return min(free + torch.cuda.memory_reserved(device), allowed)


def free_memory(device: torch.device) -> int:
    """Number of bytes on `device` that this process could still allocate."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    return usable_memory(device) - torch.cuda.memory_allocated(device)
