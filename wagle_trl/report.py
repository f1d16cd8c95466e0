"""The anatomy of a mask: where its bits are, and which simpler scores would have chosen the same."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from wagle_kernels import ScoreSpec

from .files import atomic_path
from .mask import WeightMask, layer_of, module_of
from .scores import SCORES
from .selection import Scored, select

# label -> formula, and whether it reads the forget and the retain statistic
_RIVALS = {
    "|g_f|": ("gradient", True, False),
    "|theta*g_f|": ("snip", True, False),
    "|g_f*g_r|": ("product", True, True),
    "|theta|": ("magnitude", False, False),
    "random": ("random", False, False),
}


def mask_report(mask: WeightMask) -> dict[str, Any]:
    """
    What a mask selected.

    Args:
        mask ([`WeightMask`]): The mask.

    Returns:
        `dict`: `num_selected`, `numel`, `density`, the mask's `info`, `density_by_layer`, `density_by_module`, and
        `jaccard`, the overlaps of [`rival_overlaps`] that [`~attribution.compute_mask`] left in the mask.
    """
    info = dict(mask.info)
    return {
        "num_selected": mask.num_selected,
        "numel": mask.numel,
        "density": mask.density,
        "density_by_layer": mask.density_by("layer"),
        "density_by_module": mask.density_by("module"),
        "jaccard": json.loads(info.pop("jaccard", "{}")),
        "info": info,
    }


def rival_overlaps(mask: WeightMask, scored: Scored) -> dict[str, float | None]:
    """
    Jaccard overlap with simpler scores at the same k. Near 1.0, the score has degenerated to that one.

    Args:
        mask ([`WeightMask`]): The mask.
        scored ([`~selection.Scored`]): Weights and statistics that it was selected from.

    Returns:
        `dict[str, float | None]`: By label; `None` where the score did not need the statistics of the rival, so that
        they were not accumulated.
    """
    overlaps = {}
    for label, (formula, needs_forget, needs_retain) in _RIVALS.items():
        if (needs_forget and scored.forget is None) or (needs_retain and scored.retain is None):
            overlaps[label] = None
        else:
            rival = replace(scored, spec=ScoreSpec(formula, seed=scored.spec.seed + 1))
            overlaps[label] = mask.jaccard(select(rival, mask.density))
    return overlaps


def report_tables(report: dict[str, Any]) -> list[Table]:
    """Tables of a report for the terminal: overlaps, density by module type and by layer."""
    score = report["info"].get("score", "")
    selected = f"{report['num_selected']:,} of {report['numel']:,} weights selected by '{score}'"
    overlaps = Table("score", "Jaccard overlap", title=selected, min_width=len(selected))
    for label, overlap in report["jaccard"].items():
        overlaps.add_row(label, "not computed" if overlap is None else f"{overlap:.3f}")
    if score in SCORES and SCORES[score].statistic == "fisher":
        overlaps.caption = "g: root mean square over samples"
    return [overlaps, *(_density_table(part, report[f"density_by_{part}"]) for part in ("module", "layer"))]


def _density_table(part: str, densities: dict[str, float]) -> Table:
    title = f"Selected share by {part}"
    table = Table(part, "density", title=title, min_width=len(title))
    for name, density in densities.items():
        table.add_row(name, f"{density:.4f}")
    return table


def plot_mask(mask: WeightMask, path: str | os.PathLike) -> Path:
    """
    Picture of the selected share of every layer and module type, as a PNG.

    Args:
        mask ([`WeightMask`]): The mask.
        path (`str` or `os.PathLike`): File to write.
    """
    from matplotlib.figure import Figure  # late: it takes a second to import, and few runs plot

    layers, modules, grid = _density_grid(mask)
    figure = Figure(figsize=(2.5 + 0.55 * len(modules), 2.2 + 0.28 * len(layers)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
    labels = [module.removesuffix(".weight") for module in modules]
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(layers)), layers, fontsize=8)
    axes.set_ylabel("layer")
    axes.set_title(f"{mask.info.get('score', 'mask')}: {mask.num_selected:,} of {mask.numel:,} weights", fontsize=10)
    figure.colorbar(image, ax=axes, label="selected share")
    path = Path(path)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    return path


def _density_grid(mask: WeightMask) -> tuple[list[str], list[str], list[list[float]]]:
    layers = list(dict.fromkeys(layer_of(name) for name in mask.bits))
    modules = list(dict.fromkeys(module_of(name) for name in mask.bits))
    grid = [[float("nan")] * len(modules) for _ in layers]
    for name, density in mask.density_by("parameter").items():
        grid[layers.index(layer_of(name))][modules.index(module_of(name))] = density
    return layers, modules, grid
