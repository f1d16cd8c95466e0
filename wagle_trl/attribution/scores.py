"""The score table: the statistics that each attribution score reads, and the option that sets its scale.

To add a score, add a row: a formula of `wagle_kernels`, the statistic that it reads, and the meaning of its scale. Add
its name to `ScoreName` too.
"""

import math
from dataclasses import dataclass
from typing import Literal

OFFICIAL_GAMMA = 1e-6  # Hessian scale of the published code, which sums gradients over batches

# The names in `SCORES`, which type checkers and the command line can only read from a literal
ScoreName = Literal["wagle", "gradient", "snip", "product", "magnitude", "random", "ratio", "fisher_ratio"]
Gamma = float | Literal["balanced", "official"]


@dataclass(frozen=True)
class Score:
    """
    One row of the score table.

    Args:
        formula (`str`):
            Formula of [`wagle_kernels.ScoreSpec`].
        statistic (`"gradient"`, `"fisher"` or `None`):
            Statistic that is accumulated: mean gradients, mean squared per-sample gradients, or nothing.
        uses_retain (`bool`):
            Whether the score reads the retain statistic.
        scale (`"gamma"`, `"eps"` or `None`):
            Option that sets the formula's scale.
    """

    formula: str
    statistic: Literal["gradient", "fisher"] | None
    uses_retain: bool
    scale: Literal["gamma", "eps"] | None = None

    @property
    def num_statistics(self) -> int:
        """Number of statistics that the score reads."""
        return (self.statistic is not None) + self.uses_retain


SCORES = {
    # |(theta - g_r / gamma) * g_f|: WAGLE, arXiv 2410.17509
    "wagle": Score("wagle", "gradient", uses_retain=True, scale="gamma"),
    # |g_f|: SalUn, arXiv 2310.12508
    "gradient": Score("gradient", "gradient", uses_retain=False),
    # |theta * g_f|: SNIP, arXiv 1810.02340
    "snip": Score("snip", "gradient", uses_retain=False),
    "product": Score("product", "gradient", uses_retain=True),
    "magnitude": Score("magnitude", None, uses_retain=False),
    "random": Score("random", None, uses_retain=False),
    # |g_f| / (|g_r| + eps * mean|g_r|)
    "ratio": Score("ratio", "gradient", uses_retain=True, scale="eps"),
    # F_f / (F_r + eps * mean F_r), F the diagonal of the empirical Fisher information; compare SSD, arXiv 2308.07707
    "fisher_ratio": Score("ratio", "fisher", uses_retain=True, scale="eps"),
}
"""Every score by its name, as `mask_score` takes it."""


def get_score(name: str) -> Score:
    """Row `name` of the score table. Raise a `ValueError` that lists the known names if there is none."""
    if name not in SCORES:
        raise ValueError(f"Unknown mask_score '{name}'; expected one of {', '.join(SCORES)}.")
    return SCORES[name]


def parse_gamma(gamma: str | float) -> Gamma:
    """Parse the option `mask_gamma`: `"balanced"`, `"official"` or a positive finite number."""
    if gamma in ("balanced", "official"):
        return gamma
    try:
        value = float(gamma)
    except (TypeError, ValueError):
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"mask_gamma must be 'balanced', 'official' or a positive number, got '{gamma}'.")
    return value


def score_scale(score: Score, gamma: Gamma, eps: float, mean_theta: float, mean_retain: float) -> float:
    """
    Scale of the formula.

    Args:
        score ([`Score`]): Row of the score table.
        gamma (`str` or `float`):
            `"balanced"` takes `mean|g_r| / mean|theta|`, so that both terms of the WAGLE score have equal weight;
            `"official"` takes the published 1e-6.
        eps (`float`): Damping of the ratio scores, relative to the mean retain statistic.
        mean_theta, mean_retain (`float`): Means of `|theta|` and of the absolute retain statistic over the scope.
    """
    if score.scale is None:
        return 1.0
    if score.scale == "gamma":
        if gamma == "official":
            return OFFICIAL_GAMMA
        if gamma != "balanced":
            return gamma
    if mean_retain == 0 or (score.scale == "gamma" and mean_theta == 0):
        raise ValueError(
            "The retain gradients (or the weights) in scope are all zero, so the score cannot be scaled; check that "
            "the retain rows have answers and that mask_scope names weights that the model uses."
        )
    return mean_retain / mean_theta if score.scale == "gamma" else eps * mean_retain
