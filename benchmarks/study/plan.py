"""Which cases the study runs, coarse first: one seed where it screens, more where arms are compared."""

from dataclasses import dataclass

from benchmarks.study.arms import Arm
from benchmarks.study.masks import CANDIDATES


@dataclass(frozen=True)
class Case:
    """
    An arm but for its learning rate and seed.

    Args:
        objective, score, density, scope: As in [`~benchmarks.study.arms.Arm`].
        seeds (`int`): How many worlds the picked learning rate runs in.
        attacks (`bool`): Whether the results are attacked.
        rated_by (`str`): Objective whose runs pick the learning rate; by default its own.
    """

    objective: str
    score: str
    density: float = 0.05
    scope: str = "blocks"
    seeds: int = 1
    attacks: bool = False
    rated_by: str | None = None

    def arm(self, learning_rate: float, seed: int) -> Arm:
        return Arm(self.objective, self.score, self.density, self.scope, learning_rate, seed)


SCREENED = (
    "wagle",
    "wagle-official",
    "wagle-gamma-x10",
    "wagle-gamma-x0.1",
    "gradient",
    "snip",
    "product",
    "ratio",
    "magnitude",
)
OBJECTIVES = ("npo", "graddiff")
FISHER = ("fisher_ratio", 0.05, "blocks")
RANDOM = ("random", 0.05, "blocks")
WAGLE = ("wagle", 0.05, "blocks")
DENSE = ("dense", 1.0, "all")
CLAIM = (FISHER, WAGLE, RANDOM, DENSE)
OTHERS = (("dense", 1.0, "blocks"), ("fisher_ratio", 0.05, "all"), ("random", 0.05, "all"))
PLAN = {
    "claim": [Case(o, *arm, seeds=5, attacks=True) for arm in CLAIM for o in OBJECTIVES],
    "others": [Case(o, *arm, attacks=True) for arm in OTHERS for o in OBJECTIVES],
    "scores": [Case("npo", s) for s in SCREENED],
    "100-steps": [
        Case("npo-100-steps", *arm, seeds=3, attacks=True, rated_by="npo") for arm in (DENSE, WAGLE, FISHER, RANDOM)
    ],
    "density": [Case("npo", s, d) for d in (0.02, 0.5, 0.95) for s in ("fisher_ratio", "random")],
    "candidates": [Case("npo", s) for s in (*CANDIDATES, "fisher_ratio-rescored")],
    "eps": [Case("npo", f"fisher_ratio-eps-{eps}") for eps in (0.1, 10)],
    "all-scores": [Case("npo", s, scope="all") for s in ("ratio", "wagle")],
    "beta": [Case(f"npo-beta-{beta}", *FISHER) for beta in (0.02, 0.5)],
    "graddiff": [Case("graddiff", s) for s in ("gradient", "product", "ratio", "magnitude")],
}
# Masks whose anatomy is shown: score, density, scope
DISSECTED = [(s, 0.05, "all") for s in ("fisher_ratio", "ratio", "wagle", "gradient", "magnitude", "random")]


def start_rate(case: Case) -> float:
    """First learning rate to try: fewer weights must move further, and those that matter little, too."""
    rate = {0.02: 8e-4, 0.05: 4e-4}.get(case.density, 1e-4)
    return 4 * rate if case.score in ("random", "magnitude") and case.density <= 0.05 else rate
