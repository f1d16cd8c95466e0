"""Options of mask computation, shared by Python, YAML and the command line."""

import math
from dataclasses import dataclass, field

from .scores import get_score, parse_gamma


@dataclass
class MaskConfig:
    """
    How to choose the weights that unlearning may change.

    Args:
        mask_score (`str`, *optional*, defaults to `"fisher_ratio"`):
            Attribution score: `"wagle"`, `"gradient"`, `"snip"`, `"product"`, `"magnitude"`, `"random"`, `"ratio"` or
            `"fisher_ratio"` (see `wagle_trl.scores.SCORES` for the formulas and papers).
        mask_density (`float`, *optional*, defaults to `0.05`):
            Share of the weights in scope to select, in (0, 1]; exactly `round(density * numel)` are.
        mask_gamma (`str`, *optional*, defaults to `"balanced"`):
            Hessian scale of the WAGLE score: `"balanced"` (`mean|g_r| / mean|theta|` over the scope), a positive
            number, or `"official"` (the published arithmetic: gradients summed over batches, 1e-6).
        mask_eps (`float`, *optional*, defaults to `1.0`):
            Damping of the ratio scores, relative to the mean retain statistic.
        mask_scope (`list[str]`, *optional*):
            Glob patterns of parameter names to choose from. By default all trainable weights but embeddings and LM
            head; `*` takes those too.
        mask_exclude (`list[str]`, *optional*):
            Glob patterns of parameter names to leave out of the scope.
        mask_seed (`int`, *optional*, defaults to `0`):
            Seed of the random score.
    """

    mask_score: str = field(
        default="fisher_ratio",
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
            "help": "Glob patterns of parameter names to choose from. By default all trainable weights but embeddings "
            "and LM head; '*' takes those too."
        },
    )
    mask_exclude: list[str] | None = field(
        default=None, metadata={"help": "Glob patterns of parameter names to leave out of the scope."}
    )
    mask_seed: int = field(default=0, metadata={"help": "Seed of the random score."})

    def __post_init__(self):
        get_score(self.mask_score)
        parse_gamma(self.mask_gamma)
        if not 0 < self.mask_density <= 1:
            raise ValueError(f"mask_density must be in (0, 1], got {self.mask_density}.")
        if not 0 < self.mask_eps < math.inf:
            raise ValueError(f"mask_eps must be positive and finite, got {self.mask_eps}.")
        for name in ("mask_scope", "mask_exclude"):
            if isinstance(patterns := getattr(self, name), str):  # would be taken letter by letter, '*' for everything
                raise ValueError(f"{name} must be a list of patterns, got '{patterns}'.")
