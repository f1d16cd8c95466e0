"""Masks of the study: the package's scores, and candidates that are not (yet) among them.

All read the same cached statistics of a world. For the package's own scores the mask is that of
`wagle_trl.attribution.compute_mask` (a test compares them).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.study.world import World
from wagle_kernels import ScoreSpec
from wagle_trl.attribution.compute_mask import mean_abs
from wagle_trl.attribution.lazy_scores import LazyScores
from wagle_trl.attribution.scores import SCORES, score_scale
from wagle_trl.attribution.selection import select
from wagle_trl.masks.mask import WeightMask
from wagle_trl.masks.scope import scope_parameters

SCOPES = {"blocks": None, "all": ["*"]}  # as `mask_scope` takes them
# arm's name of a score -> (row of the score table, gamma, eps)
SETTINGS = {
    "wagle": ("wagle", "balanced", 1.0),
    "wagle-official": ("wagle", "official", 1.0),
    "wagle-gamma-x10": ("wagle", 10.0, 1.0),  # of the balanced gamma
    "wagle-gamma-x0.1": ("wagle", 0.1, 1.0),
    **{name: (name, "balanced", 1.0) for name in SCORES if name != "wagle"},
    "fisher_ratio-eps-0.1": ("fisher_ratio", "balanced", 0.1),
    "fisher_ratio-eps-10": ("fisher_ratio", "balanced", 10.0),
}

Statistics = dict[str, Tensor]


def make_mask(world: World, score: str, density: float, scope: str) -> WeightMask:
    """
    A mask at the base model of a world.

    Args:
        world ([`World`]): The world.
        score (`str`): Key of `SETTINGS` or `CANDIDATES`, or `"dense"` for all of the scope.
        density (`float`): Share of the scope to select.
        scope (`str`): Key of `SCOPES`.
    """
    parameters = scope_parameters(world.model(), SCOPES[scope])
    if score == "dense":
        return WeightMask.from_dense({n: torch.ones(p.shape, dtype=torch.bool) for n, p in parameters.items()})
    if score in SETTINGS:
        return select(_scored(world, parameters, score), density)
    formula, budget = CANDIDATES[score]
    values = formula(world, parameters)
    return BUDGETS[budget](parameters, values, density)


def _scored(world: World, parameters: Statistics, score: str) -> LazyScores:
    name, gamma, eps = SETTINGS[score]
    row = SCORES[name]
    kind = "sum" if gamma == "official" else {"gradient": "g", "fisher": "F", None: None}[row.statistic]
    forget = world.statistic(f"{kind}_forget") if row.statistic else None
    retain = world.statistic(f"{kind}_retain") if row.uses_retain else None
    mean_theta, mean_retain = mean_abs(parameters.values()), 0.0
    if retain is not None:
        mean_retain = mean_abs(retain[name] for name in parameters)
    multiple = 1.0
    if isinstance(gamma, float):
        multiple, gamma = gamma, "balanced"
    scale = multiple * score_scale(row, gamma, eps, mean_theta, mean_retain)
    return LazyScores(parameters, ScoreSpec(row.formula, scale, world.seed), forget, retain)


# Candidates: scores of every weight, in plain PyTorch


def _damped(world: World, parameters) -> Statistics:
    """The diagonal retain Fisher information, damped by its mean over the scope."""
    fisher = world.statistic("F_retain")
    damping = mean_abs(fisher[name] for name in parameters)
    return {name: fisher[name] + damping for name in parameters}


def _each(parameters, formula: Callable[[str], Tensor]) -> Statistics:
    return {name: formula(name) for name in parameters}


def wagle_fisher(world: World, parameters) -> Statistics:
    """WAGLE with the diagonal Fisher information as the Hessian: |(theta - g_r / (F_r + mean F_r)) * g_f|."""
    hessian, g_f, g_r = _damped(world, parameters), world.statistic("g_forget"), world.statistic("g_retain")
    return _each(parameters, lambda n: ((parameters[n].detach() - g_r[n] / hessian[n]) * g_f[n]).abs())


def _signed_wagle(world: World, parameters, sign: float) -> Statistics:
    g_f, g_r = world.statistic("g_forget"), world.statistic("g_retain")
    gamma = mean_abs(g_r[n] for n in parameters) / mean_abs(parameters.values())
    values = _each(parameters, lambda n: sign * (parameters[n].detach() - g_r[n] / gamma) * g_f[n])
    return {name: value.clamp(min=0) for name, value in values.items()}


def wagle_positive(world: World, parameters) -> Statistics:
    """The WAGLE score without its absolute value, the largest."""
    return _signed_wagle(world, parameters, 1.0)


def wagle_negative(world: World, parameters) -> Statistics:
    """The WAGLE score without its absolute value, the smallest."""
    return _signed_wagle(world, parameters, -1.0)


def gradient_fisher(world: World, parameters) -> Statistics:
    """g_f^2 / (F_r + mean F_r): forget gradients that agree between samples, by what the retain rows need."""
    hessian, g_f = _damped(world, parameters), world.statistic("g_forget")
    return _each(parameters, lambda n: g_f[n].square() / hessian[n])


def fisher_ratio(world: World, parameters) -> Statistics:
    """F_f / (F_r + mean F_r)."""
    hessian, fisher = _damped(world, parameters), world.statistic("F_forget")
    return _each(parameters, lambda n: fisher[n] / hessian[n])


# Budgets: which of the scored weights are taken


def _global(parameters, values: Statistics, density: float) -> WeightMask:
    return select(LazyScores(parameters, ScoreSpec("gradient"), values), density)


def _by_parameter(parameters, values: Statistics, density: float) -> WeightMask:
    """The same density in every weight matrix."""
    return _joined(_global({name: parameters[name]}, values, density) for name in parameters)


def _rows(parameters, values: Statistics, density: float) -> WeightMask:
    """Whole rows of the matrices, that is output neurons, by the mean score of their weights."""
    means = {n: v.mean(-1, keepdim=True).expand_as(v).contiguous() if v.dim() == 2 else v for n, v in values.items()}
    return _global(parameters, means, density)


def _joined(masks) -> WeightMask:
    parts = list(masks)
    bits = {name: bits for part in parts for name, bits in part.bits.items()}
    return WeightMask(bits, {name: shape for part in parts for name, shape in part.shapes.items()})


BUDGETS = {"global": _global, "parameter": _by_parameter, "rows": _rows}
# name -> (formula, budget)
CANDIDATES = {
    "wagle_fisher": (wagle_fisher, "global"),
    "wagle_negative": (wagle_negative, "global"),
    "wagle_positive": (wagle_positive, "global"),
    "gradient_fisher": (gradient_fisher, "global"),
    "fisher_ratio-per-matrix": (fisher_ratio, "parameter"),
    "fisher_ratio-rows": (fisher_ratio, "rows"),
}


# Anatomy


def anatomy(world: World, score: str, density: float, scope: str) -> dict:
    """
    Where a mask is: its shares of selected weights in embedding, LM head and blocks, and the share of its embedding and
    head weights that lie in rows of tokens which the forget rows use and no retain row does.
    """
    mask = make_mask(world, score, density, scope)
    only_forget = _tokens(world, "forget") - _tokens(world, "retain") - _tokens(world, "unseen_retain")
    rows = torch.zeros(len(world.tokenizer), dtype=torch.bool)
    rows[sorted(only_forget)] = True
    selected = {name: mask.num_selected_of(name) for name in mask.bits}
    vocabulary = [name for name in ("model.embed_tokens.weight", "lm_head.weight") if name in mask.bits]
    in_rows = sum(int(mask.dense(name)[rows].sum()) for name in vocabulary)
    in_vocabulary = sum(selected[name] for name in vocabulary)
    return {
        "score": score,
        "density": density,
        "scope": scope,
        "seed": world.seed,
        "embedding": selected.get("model.embed_tokens.weight", 0) / mask.num_selected,
        "lm_head": selected.get("lm_head.weight", 0) / mask.num_selected,
        "blocks": 1 - in_vocabulary / mask.num_selected,
        "in_rows_of_forget_only_tokens": in_rows / in_vocabulary if in_vocabulary else None,
        "forget_only_tokens": len(only_forget),
        "by_module": mask.density_by("module"),
        "by_layer": mask.density_by("layer"),
    }


def _tokens(world: World, name: str) -> set[int]:
    return {token for batch in world.batches(name) for token in batch["input_ids"].unique().tolist()}
