"""What attribution takes in each tier, and which tier to take."""

from collections.abc import Mapping

import psutil
from torch import Tensor

from ..memory.simulation import WorkingMemory
from .config import MaskConfig, Tier
from .scores import Score
from .statistic_store import STATISTIC_BYTES, split_evenly, statistic_bytes

MAX_QUICK_SWEEPS = 8  # beyond, adding up on the host is faster: it moves every gradient, but computes it once
_SWEEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)  # tried, and one for each parameter
HEADROOM = 0.95  # of the free memory, the rest being lost between allocations

Components = dict[str, int]


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
    The fastest tier that fits.

    Args:
        config ([`MaskConfig`]): Says whether any tier may be chosen, or sweeps alone.
        parameters (`dict[str, torch.Tensor]`): The scope.
        score ([`~attribution.scores.Score`]): Says which statistics are needed.
        working (`int`): Bytes that a step takes beyond the weights and statistics.
        free (`int`, *optional*): Bytes on the device beside the weights; without it, there are enough.
        on_gpu (`bool`): Whether the host's memory is another.
        host (`int`, *optional*): Bytes there; by default those available.

    Returns:
        [`~attribution.statistic_store.Tier`]: If none fits, the one that takes least.
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
    peaks = {tier: _peak(phases_of(tier, parameters, score, WorkingMemory(0, working), on_gpu)) for tier in order}
    fitting = (tier for tier, peak in peaks.items() if free is None or peak <= HEADROOM * free)
    return next(fitting, min(peaks, key=peaks.__getitem__))


def _peak(phases: list[Components]) -> int:
    return max(sum(phase.values()) for phase in phases)


def elsewhere(tier: Tier, parameters: Mapping[str, Tensor], score: Score) -> Components:
    """Bytes that a tier takes on the `host` or the `disk`."""
    total = statistic_bytes(parameters.values())
    places = {
        "resident": {},
        "offload": {"host": (score.num_statistics - 1) * total},
        "host": {"host": score.num_statistics * total},
        "sweeps": {"disk": score.num_statistics * total},
    }
    return places[tier.name]


def phases_of(
    tier: Tier, parameters: Mapping[str, Tensor], score: Score, working: WorkingMemory, on_gpu: bool
) -> list[Components]:
    """Components beside the weights: of adding up, of scoring, of comparing the mask with a rival score's."""
    numels = [p.numel() for p in parameters.values()]
    total = statistic_bytes(parameters.values())
    if tier.name == "sweeps":
        added, held = STATISTIC_BYTES * largest_part(parameters, tier.sweeps), 0
    else:
        on_device = {"resident": score.num_statistics, "offload": 1, "host": 0}[tier.name]
        # On a CPU, what is on the host is where it was
        added = held = total * (on_device if on_gpu else score.num_statistics)
    # One parameter at a time: its statistics, where they are elsewhere, and for the rivals of Fisher scores their roots
    copies = (held < score.num_statistics * total) + (score.statistic == "fisher")
    pieces = copies * score.num_statistics * STATISTIC_BYTES * max(numels)
    bits = sum(numels) // 8
    candidates = round(60 * sum(numels) ** (2 / 3))  # at most, see `selection.bracket`
    return [
        {"statistics": added} | working_components(working),
        {"statistics": held + pieces, "masks": 2 * bits, "candidates": candidates},
        {"statistics": held, "masks": 3 * bits},  # both, and both together
    ]


def working_components(working: WorkingMemory) -> Components:
    return {"activations": working.kept, "backward pass": working.peak - working.kept}


def largest_part(parameters: Mapping[str, Tensor], sweeps: int) -> int:
    """Most weights in a sweep."""
    return max(sum(p.numel() for p in part.values()) for part in split_evenly(parameters, sweeps))
