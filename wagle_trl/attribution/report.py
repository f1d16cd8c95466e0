"""The anatomy of a mask: where its bits are, and which simpler scores would have chosen the same."""

import math
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from wagle_kernels import ScoreSpec

from ..files.atomic import atomic_path
from ..masks.anatomy import layer_of, module_of
from ..masks.mask import WeightMask
from ..text import figure_text
from .scores import SCORES
from .selection import Scored, select

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# label -> formula, and whether it reads the forget and the retain statistic
_RIVALS = {
    "|g_f|": ("gradient", True, False),
    "|theta*g_f|": ("snip", True, False),
    "|g_f*g_r|": ("product", True, True),
    "|theta|": ("magnitude", False, False),
    "random": ("random", False, False),
}
_MASKS_BESIDE = 4  # at most, in a picture of several


def mask_report(mask: WeightMask) -> dict[str, Any]:
    """
    What a mask selected.

    Args:
        mask ([`WeightMask`]): The mask.

    Returns:
        `dict`: `num_selected`, `numel`, `density`, the mask's `info`, `density_by_layer`, `density_by_module`, and
        `jaccard`, the overlaps of [`rival_overlaps`] that [`~attribution.compute_mask`] left in the mask.
    """
    return {
        "num_selected": mask.num_selected,
        "numel": mask.numel,
        "density": mask.density,
        "density_by_layer": mask.density_by("layer"),
        "density_by_module": mask.density_by("module"),
        "jaccard": dict(mask.info.jaccard or {}),
        "info": replace(mask.info, jaccard=None).to_metadata(),
    }


def rival_overlaps(mask: WeightMask, scored: Scored) -> dict[str, float | None]:
    """
    Jaccard overlap with simpler scores at the same k. Near 1.0, the score has degenerated to that one.

    Args:
        mask ([`WeightMask`]): The mask.
        scored ([`~attribution.selection.Scored`]): Weights and statistics that it was selected from.

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
    return plot_masks([(mask.info.score or "mask", mask)], path)


def plot_masks(masks: Iterable[tuple[str, WeightMask]], path: str | os.PathLike) -> Path:
    """
    The picture of [`plot_mask`] for several masks beside each other, with one scale of colours.

    Args:
        masks (iterable of `tuple[str, WeightMask]`): At least one title and mask; one mask at a time is held.
        path (`str` or `os.PathLike`): File to write.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        draw_masks(masks).savefig(temporary, dpi=150, format="png")
    return path


def draw_masks(masks: Iterable[tuple[str, WeightMask]]) -> "Figure":
    """The figure of [`plot_masks`]."""
    from matplotlib.colors import PowerNorm  # late: it takes a second to import, and few runs plot
    from matplotlib.figure import Figure

    titles, densities = [], []
    for title, mask in masks:
        titles.append(f"{figure_text(title)}\n{mask.num_selected:,} of {mask.numel:,} weights")
        densities.append(mask.density_by("parameter"))
    layers, modules = (
        list(dict.fromkeys(part_of(name) for shares in densities for name in shares))
        for part_of in (layer_of, module_of)
    )
    rows = math.ceil(len(titles) / _MASKS_BESIDE)
    columns = math.ceil(len(titles) / rows)
    cell = 0.55 if len(titles) == 1 else 0.28
    names = 1.4 if len(titles) == rows * columns else 2.8  # below the last row, and above where that is not full
    size = (1.9 + columns * (0.6 + cell * len(modules)), names + rows * (0.8 + 0.28 * len(layers)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    # A few small modules may be selected whole; by square roots the differences among all others show, too
    norm = PowerNorm(0.5, vmin=0, vmax=max(share for shares in densities for share in shares.values()))
    for axes, title, shares in zip(panels, titles, densities):
        image = axes.imshow(_grid(shares, layers, modules), aspect="auto", cmap="viridis", norm=norm)
        axes.set_title(title, fontsize=8)
    _label_parts(panels, len(titles), columns, layers, modules)
    # A sixth of an inch wide, however long
    figure.colorbar(image, ax=figure.axes, label="selected share", aspect=6 * rows * 0.28 * len(layers))
    return figure


def _grid(shares: dict[str, float], layers: list[str], modules: list[str]) -> list[list[float]]:
    grid = [[float("nan")] * len(modules) for _ in layers]
    for name, share in shares.items():
        grid[layers.index(layer_of(name))][modules.index(module_of(name))] = share
    return grid


def _label_parts(panels, count: int, columns: int, layers: list[str], modules: list[str]) -> None:
    """Names of layers and modules at the outer panels, of which `count` are in use."""
    labels = [figure_text(module.removesuffix(".weight")) for module in modules]
    panels[0].set_xticks(range(len(labels)), labels)
    panels[0].set_yticks(range(len(layers)), map(figure_text, layers))
    for place, axes in enumerate(panels):
        axes.set_visible(place < count)
        axes.tick_params("x", labelbottom=place + columns >= count, rotation=60, labelsize=8)
        axes.tick_params("y", labelsize=8)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
        if place % columns == 0:
            axes.set_ylabel("layer")
