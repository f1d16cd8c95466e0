"""Choose the tier of attribution by the memory that each tier takes."""

from collections.abc import Mapping

import psutil
from torch import Tensor

from ..memory.simulation import WorkingMemory
from .config import MaskConfig, Tier
from .scores import Score
from .statistic_store import STATISTIC_BYTES, split_evenly, statistic_bytes

# With more sweeps, adding up on the host is faster: it moves every gradient, but computes each only once
MAX_QUICK_SWEEPS = 8
_SWEEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)  # numbers to try before one sweep per parameter
HEADROOM = 0.95  # usable share of the free memory; fragmentation takes the rest

Components = dict[str, int]  # name -> bytes


def choose_tier(
    config: MaskConfig,
    parameters: Mapping[str, Tensor],
    score: Score,
    working: int,
    free: int | None,
    on_gpu: bool,
    host: int | None = None,
) -> Tier:
    """
    Choose the fastest tier that fits.

    Args:
        config ([`MaskConfig`]): Options, which allow either all tiers or only sweeps.
        parameters (`dict[str, torch.Tensor]`): Parameters in scope.
        score ([`~attribution.scores.Score`]): Attribution score, which reads some of the statistics.
        working (`int`): Bytes that a step takes beyond weights and statistics.
        free (`int`, *optional*): Bytes on the device that the weights leave free. If it is left out, everything fits.
        on_gpu (`bool`): Whether the model is on a GPU, so that the host has memory of its own.
        host (`int`, *optional*): Bytes on the host; by default those available now.

    Returns:
        [`~attribution.config.Tier`]: The tier. If none fits, it is the one that takes the least memory.
    """
    total = statistic_bytes(parameters.values())
    room = (psutil.virtual_memory().available if host is None else host) if on_gpu else 0
    counts = [count for count in _SWEEPS if count < len(parameters)]
    sweeps = [Tier("sweeps", count) for count in (*counts, len(parameters))]
    order = [Tier("resident")]
    if score.num_statistics > 1 and total <= room:
        order.append(Tier("offload"))
    order += [tier for tier in sweeps if tier.sweeps <= MAX_QUICK_SWEEPS]
    if score.num_statistics * total <= room:
        order.append(Tier("host"))
    order += sweeps
    if config.attribution_memory != "auto":
        order = [tier for tier in order if tier.name == config.attribution_memory]
    peaks = {}
    for tier in order:
        phases = memory_phases(tier, parameters, score, WorkingMemory(0, working), on_gpu)
        peaks[tier] = max(sum(phase.values()) for phase in phases)
    fitting = (tier for tier, peak in peaks.items() if free is None or peak <= HEADROOM * free)
    return next(fitting, min(peaks, key=peaks.__getitem__))


def off_device_bytes(tier: Tier, parameters: Mapping[str, Tensor], score: Score) -> Components:
    """Bytes that the statistics take on the `host` or the `disk`."""
    total = statistic_bytes(parameters.values())
    places = {
        "resident": {},
        "offload": {"host": (score.num_statistics - 1) * total},
        "host": {"host": score.num_statistics * total},
        "sweeps": {"disk": score.num_statistics * total},
    }
    return places[tier.name]


def memory_phases(
    tier: Tier, parameters: Mapping[str, Tensor], score: Score, working: WorkingMemory, on_gpu: bool
) -> list[Components]:
    """
    Bytes on the device beside the weights, by component, in each phase: adding up the statistics, selecting, and
    computing the overlap of two masks.
    """
    numels = [p.numel() for p in parameters.values()]
    total = statistic_bytes(parameters.values())
    if tier.name == "sweeps":
        held = 0
        accumulating = max(statistic_bytes(part.values()) for part in split_evenly(parameters, tier.sweeps))
    else:
        on_device = {"resident": score.num_statistics, "offload": 1, "host": 0}[tier.name]
        # On a CPU the host is the device: statistics that go to the host stay in the same memory
        accumulating = held = total * (on_device if on_gpu else score.num_statistics)
    # Selection copies one parameter at a time: its statistics if they are off the device, and their square roots for
    # the baselines of a Fisher score
    copies = (held < score.num_statistics * total) + (score.statistic == "fisher")
    copied = copies * score.num_statistics * STATISTIC_BYTES * max(numels)
    bits = sum(numels) // 8
    candidates = round(60 * sum(numels) ** (2 / 3))  # upper bound, see `selection.bracket`
    return [
        {"statistics": accumulating} | working_components(working),
        {"statistics": held + copied, "masks": 2 * bits, "candidates": candidates},
        {"statistics": held, "masks": 3 * bits},  # two masks, and the bits that both select
    ]


def working_components(working: WorkingMemory) -> Components:
    """Activations that a forward pass keeps, and what the backward pass takes beyond them."""
    return {"activations": working.kept, "backward pass": working.peak - working.kept}
