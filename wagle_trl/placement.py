"""What attribution takes in each tier, and which tier to take."""

from collections.abc import Mapping

import psutil
import torch
from torch import Tensor

from .mask_config import MaskConfig, Tier
from .simulation import Working
from .tiers import STATISTIC_BYTES, split_evenly

MAX_QUICK_SWEEPS = 8  # beyond, adding up on the host is faster: it moves every gradient, but computes it once

Components = dict[str, int]


def choose_tier(
    config: MaskConfig,
    parameters: Mapping[str, Tensor],
    num_statistics: int,
    working: int,
    free: int | None,
    on_gpu: bool,
) -> Tier:
    """
    The fastest tier that fits.

    Args:
        config ([`MaskConfig`]): Says whether any tier may be chosen, or sweeps alone.
        parameters (`dict[str, torch.Tensor]`): The scope.
        num_statistics (`int`): Statistics that the score reads.
        working (`int`): Bytes that a step takes beyond the weights and statistics.
        free (`int`, *optional*): Bytes on the device beside the weights; without it, there are enough.
        on_gpu (`bool`): Whether the host's memory is another.

    Returns:
        [`~tiers.Tier`]: If none fits, the one that takes least.
    """
    total = STATISTIC_BYTES * sum(p.numel() for p in parameters.values())
    host = psutil.virtual_memory().available if on_gpu else 0
    counts = [count for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if count < len(parameters)]
    sweeps = [Tier("sweeps", count) for count in (*counts, len(parameters))]
    order = [Tier("resident")]
    if num_statistics > 1 and total <= host:
        order.append(Tier("offload"))
    order += [tier for tier in sweeps if tier.sweeps <= MAX_QUICK_SWEEPS]
    if num_statistics * total <= host:
        order.append(Tier("host"))
    order += sweeps
    if config.attribution_memory != "auto":
        order = [tier for tier in order if tier.name == config.attribution_memory]
    for tier in order:
        phases = phases_of(tier, parameters, num_statistics, Working(0, working), on_gpu)
        if free is None or max(sum(phase.values()) for phase in phases) <= free:
            return tier
    return order[-1]


def elsewhere(tier: Tier, parameters: Mapping[str, Tensor], num_statistics: int) -> Components:
    """Bytes that a tier takes on the `host` or the `disk`."""
    total = STATISTIC_BYTES * sum(p.numel() for p in parameters.values())
    places = {
        "resident": {},
        "offload": {"host": total},
        "host": {"host": num_statistics * total},
        "sweeps": {"disk": num_statistics * total},
    }
    return places[tier.name]


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def phases_of(tier: Tier, parameters, num_statistics: int, working: Working, on_gpu: bool) -> list[Components]:
    """Components of adding up and of selecting, beside the weights."""
    numels = [p.numel() for p in parameters.values()]
    total = STATISTIC_BYTES * sum(numels)
    part = STATISTIC_BYTES * max(sum(p.numel() for p in g.values()) for g in split_evenly(parameters, tier.sweeps))
    on_disk = tier.name == "sweeps"
    held = total if tier.name == "offload" else 0 if tier.name == "host" else num_statistics * total
    held = held if on_gpu or on_disk else num_statistics * total  # a CPU's tensors on the host are where they were
    adding = {"statistics": part if on_disk else held} | working_components(working)
    # One parameter's statistics at a time, and their roots; the masks of the score, of a rival, and both together
    pieces = num_statistics * STATISTIC_BYTES * max(numels)
    selecting = {
        "statistics": (0 if on_disk else held) + pieces,
        "masks": 3 * sum(numels) // 8,
        "candidates": round(100 * sum(numels) ** (2 / 3)),
    }
    return [adding, selecting]


def working_components(working: Working) -> Components:
    return {"activations": working.kept, "backward pass": working.peak - working.kept}
