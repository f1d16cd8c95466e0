"""Options of mask computation, shared by Python, YAML and the command line."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from .scores import ScoreName, get_score, parse_gamma

TierName = Literal["resident", "offload", "host", "sweeps"]
TIERS = get_args(TierName)


@dataclass(frozen=True)
class Tier:
    """
    A place to keep the statistics. All tiers give the same bits, because gradients are taken at fixed weights.

    Args:
        name (`str`):
            `"resident"`: all statistics stay on the device. `"offload"`: the first is moved to the host while the
            second is added up on the device. `"host"`: gradients are moved to the host and added up there.
            `"sweeps"`: the device holds one statistic for one part of the scope, and writes it to disk before the next
            part.
        sweeps (`int`, *optional*, defaults to `1`): Number of parts of the scope; each takes one pass over the data.
    """

    name: TierName
    sweeps: int = 1

    def __str__(self) -> str:
        return f"{self.sweeps} sweeps" if self.name == "sweeps" else self.name


@dataclass
class MaskConfig:
    """
    Options that choose the weights that unlearning may change.

    Args:
        mask_score (`str`, *optional*, defaults to `"wagle"`):
            Attribution score: `"wagle"`, `"gradient"`, `"snip"`, `"product"`, `"magnitude"`, `"random"`, `"ratio"` or
            `"fisher_ratio"` (see `wagle_trl.attribution.scores.SCORES` for the formulas and papers).
        mask_density (`float`, *optional*, defaults to `0.05`):
            Share of the weights in scope to select, in (0, 1]. Exactly `round(density * numel)` weights are selected.
        mask_gamma (`str`, *optional*, defaults to `"balanced"`):
            Hessian scale of the WAGLE score: `"balanced"` (`mean|g_r| / mean|theta|` over the scope), a positive
            number, or `"official"` (the published arithmetic: gradients summed over batches, 1e-6).
        mask_eps (`float`, *optional*, defaults to `1.0`):
            Damping of the ratio scores, relative to the mean retain statistic.
        mask_scope (`list[str]`, *optional*):
            Glob patterns of parameter names to choose from. By default all trainable weights except embeddings and LM
            head; `*` takes those too.
        mask_exclude (`list[str]`, *optional*):
            Glob patterns of parameter names to leave out of the scope.
        mask_seed (`int`, *optional*, defaults to `0`):
            Seed of the random score.
        attribution_memory (`str`, *optional*, defaults to `"auto"`):
            Where the statistics of attribution are kept: `"resident"` on the device, `"offload"` one of two on the
            host, `"host"` all added up on the host, `"sweeps"` on disk, computed for one part of the scope at a time.
            `"auto"` takes the fastest of these that fits the free memory. The mask is the same for all.
        attribution_sweeps (`int`, *optional*):
            Number of sweeps. By default it is the smallest that fits the free memory.
    """

    mask_score: ScoreName = field(
        default="wagle",
        metadata={
            "help": "Attribution score: 'wagle', 'gradient', 'snip', 'product', 'magnitude', 'random', 'ratio' or "
            "'fisher_ratio'."
        },
    )
    mask_density: float = field(default=0.05, metadata={"help": "Share of the weights in scope to select, in (0, 1]."})
    mask_gamma: str = field(
        default="balanced",
        metadata={"help": "Hessian scale of the WAGLE score: 'balanced', 'official' or a positive number."},
    )
    mask_eps: float = field(
        default=1.0, metadata={"help": "Damping of the ratio scores, relative to the mean retain statistic."}
    )
    mask_scope: list[str] | None = field(
        default=None,
        metadata={
            "help": "Glob patterns of parameter names to choose from. By default all trainable weights except "
            "embeddings and LM head; '*' takes those too."
        },
    )
    mask_exclude: list[str] | None = field(
        default=None, metadata={"help": "Glob patterns of parameter names to leave out of the scope."}
    )
    mask_seed: int = field(default=0, metadata={"help": "Seed of the random score."})
    attribution_memory: Literal["auto", TierName] = field(
        default="auto",
        metadata={
            "help": "Where the statistics of attribution are kept: 'resident' on the device, 'offload' one of two on "
            "the host, 'host' all added up on the host, 'sweeps' on disk, computed for one part of the scope at a time. "
            "'auto' takes the fastest of these that fits the free memory. The mask is the same for all."
        },
    )
    attribution_sweeps: int | None = field(
        default=None,
        metadata={"help": "Number of sweeps. By default it is the smallest that fits the free memory."},
    )

    def __post_init__(self):
        get_score(self.mask_score)
        parse_gamma(self.mask_gamma)
        if not 0 < self.mask_density <= 1:
            raise ValueError(f"mask_density must be in (0, 1], got {self.mask_density}.")
        if not 0 < self.mask_eps < math.inf:
            raise ValueError(f"mask_eps must be positive and finite, got {self.mask_eps}.")
        if self.attribution_memory not in ("auto", *TIERS):
            raise ValueError(
                f"attribution_memory must be 'auto' or one of {', '.join(TIERS)}, got '{self.attribution_memory}'."
            )
        if self.attribution_sweeps is not None and self.attribution_memory != "sweeps":
            raise ValueError("attribution_sweeps goes with attribution_memory='sweeps'; set both or neither.")
        if self.attribution_sweeps is not None and self.attribution_sweeps < 1:
            raise ValueError(f"attribution_sweeps must be at least 1, got {self.attribution_sweeps}.")
        for name in ("mask_scope", "mask_exclude"):
            if isinstance(patterns := getattr(self, name), str):  # each letter would be a pattern, and '*' matches all
                raise ValueError(f"{name} must be a list of patterns, got '{patterns}'.")

    @property
    def tier(self) -> Tier | None:
        """Tier that the options name, or `None` if it depends on the free memory."""
        if self.attribution_memory == "auto" or (self.attribution_memory == "sweeps" and not self.attribution_sweeps):
            return None
        return Tier(self.attribution_memory, self.attribution_sweeps or 1)
