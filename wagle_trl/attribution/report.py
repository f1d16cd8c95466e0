"""Mask reports: where a mask selects weights, and which simpler scores would have selected the same."""

import math
import os
import textwrap
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from wagle_kernels import ScoreSpec

from ..files.atomic import atomic_path
from ..files.figure import COLUMN, PAGE, house_style, new_figure
from ..masks.anatomy import layer_label, layer_of, module_of
from ..masks.mask import WeightMask
from ..text import figure_text, percent
from .lazy_scores import LazyScores
from .scores import SCORES
from .selection import select

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Simpler scores that a mask is compared with. Label -> formula, and whether it reads the forget and retain statistics
_BASELINES = {
    "|g_f|": ("gradient", True, False),
    "|theta*g_f|": ("snip", True, False),
    "|g_f*g_r|": ("product", True, True),
    "|theta|": ("magnitude", False, False),
    "random": ("random", False, False),
}
# Inches of the picture
_BESIDE, _ROW, _COLUMN = 1.9, 0.2, 0.16  # names of layers and colour bar; a layer; a module
_LOWEST, _TALLEST = 1.0, 7.0  # of the layers of a mask


def mask_report(mask: WeightMask) -> dict[str, Any]:
    """
    Describe what a mask selected, as in the section `mask` of `wagle_report.json`.

    Args:
        mask ([`WeightMask`]): The mask.

    Returns:
        `dict`: `num_selected`, `numel`, `density`, the mask's `info`, `density_by_layer`, `density_by_module`, and
        `jaccard`, the overlaps of [`baseline_overlaps`] that [`~attribution.compute_mask`] recorded in the mask.
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


def baseline_overlaps(mask: WeightMask, scores: LazyScores) -> dict[str, float | None]:
    """
    Jaccard overlap of a mask with the masks of simpler scores at the same k. An overlap near 1.0 shows that the score
    has degenerated to the simpler one.

    Args:
        mask ([`WeightMask`]): The mask.
        scores ([`~attribution.lazy_scores.LazyScores`]): Scores that the mask was selected by.

    Returns:
        `dict[str, float | None]`: Overlaps by label. An overlap is `None` if the simpler score reads a statistic that
        the mask's own score did not need.
    """
    overlaps = {}
    for label, (formula, needs_forget, needs_retain) in _BASELINES.items():
        if (needs_forget and scores.forget is None) or (needs_retain and scores.retain is None):
            overlaps[label] = None
        else:
            baseline = replace(scores, spec=ScoreSpec(formula, seed=scores.spec.seed + 1))
            overlaps[label] = mask.jaccard(select(baseline, mask.density))
    return overlaps


def report_tables(report: dict[str, Any]) -> list[Table]:
    """Tables of a mask report for the terminal: overlaps, density by module type, density by layer."""
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
        table.add_row(layer_label(name), f"{density:.4f}")
    return table


def plot_mask(mask: WeightMask, path: str | os.PathLike) -> Path:
    """
    Draw the selected share of every layer and module type.

    Args:
        mask ([`WeightMask`]): The mask.
        path (`str` or `os.PathLike`): File to write: a PDF or SVG where the suffix says so, else a PNG.
    """
    return plot_masks([(mask.info.score or "mask", mask)], path)


def plot_masks(masks: Iterable[tuple[str, WeightMask]], path: str | os.PathLike) -> Path:
    """
    Draw several masks side by side as in [`plot_mask`], with one colour scale.

    Args:
        masks (iterable of `tuple[str, WeightMask]`): At least one pair of title and mask. Only one mask at a time is
            held in memory.
        path (`str` or `os.PathLike`): As in [`plot_mask`].
    """
    path = Path(path)
    kind = {".pdf": "pdf", ".svg": "svg"}.get(path.suffix.lower(), "png")
    with house_style(), atomic_path(path) as temporary:
        draw_masks(masks).savefig(temporary, dpi=150, format=kind)
    return path


def draw_masks(masks: Iterable[tuple[str, WeightMask]]) -> "Figure":
    """Matplotlib figure of [`plot_masks`]."""
    from matplotlib.colors import PowerNorm  # imported here: it takes a second, and few runs plot

    shown = [(_title(title, mask), mask.density_by("parameter")) for title, mask in masks]
    layers, modules = (
        list(dict.fromkeys(part_of(name) for _, shares in shown for name in shares))
        for part_of in (layer_of, module_of)
    )
    columns = max(1, min(len(shown), int((PAGE - _BESIDE) / (0.3 + _COLUMN * len(modules)))))
    rows = math.ceil(len(shown) / columns)
    width = PAGE if columns > 1 else min(PAGE, max(COLUMN, _BESIDE + 0.4 * len(modules)))
    height = min(max(_ROW * len(layers), _LOWEST), _TALLEST)
    # Names of modules stand below the last row, and also below the row above if the last one is not full
    names = 1.6 if len(shown) == rows * columns else 3.2
    # A few small modules may be selected whole. A square root scale keeps the differences among the others visible
    norm = PowerNorm(0.5, vmin=0, vmax=max(share for _, shares in shown for share in shares.values()))
    with house_style():
        figure = new_figure(width, names + rows * (0.7 + height))
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        across = int(15 * ((width - _BESIDE) / columns + (0.1 if columns > 1 else 1.0)))  # characters of a title
        for axes, (title, shares) in zip(panels, shown):
            image = axes.imshow(_grid(shares, layers, modules), aspect="auto", norm=norm)
            axes.set_title("\n".join(textwrap.fill(line, across) for line in title))
            axes.spines[["top", "right"]].set_visible(True)
        _label_parts(panels, len(shown), columns, layers, modules)
        # The aspect keeps the colour bar a sixth of an inch wide at any height
        tall = rows * height + (rows - 1) * (names - 0.9)
        figure.colorbar(image, ax=figure.axes, label="selected share", aspect=6 * tall)
    return figure


def _title(title: str, mask: WeightMask) -> list[str]:
    """Make the lines above a mask: its title, how many weights it selects, and of which model."""
    count = f"{mask.num_selected:,} of {mask.numel:,} weights ({percent(mask.density)})"
    score, model = mask.info.score, mask.info.base_model
    named = figure_text(title, 30) + ("" if score in (None, title) else f": {figure_text(score, 30)}")
    return [named, count, *([f"of {figure_text(Path(model).name, 30)}"] if model else [])]


def _grid(shares: dict[str, float], layers: list[str], modules: list[str]) -> list[list[float]]:
    grid = [[float("nan")] * len(modules) for _ in layers]
    for name, share in shares.items():
        grid[layers.index(layer_of(name))][modules.index(module_of(name))] = share
    return grid


def _label_parts(panels, count: int, columns: int, layers: list[str], modules: list[str]) -> None:
    """Write the names of layers and modules at the outer panels, and hide all panels after the first `count`."""
    labels = [figure_text(module.removesuffix(".weight"), 30) for module in modules]
    panels[0].set_xticks(range(len(labels)), labels)
    step = math.ceil(_ROW * len(layers) / _TALLEST)  # of many layers, not every name has room
    names = ["outside layers" if layer == "-" else figure_text(layer, 30) for layer in layers]
    panels[0].set_yticks(range(0, len(layers), step), names[::step])
    for place, axes in enumerate(panels):
        axes.set_visible(place < count)
        axes.tick_params("x", labelbottom=place + columns >= count, rotation=60)
        for label in axes.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")
        if place % columns == 0:
            axes.set_ylabel("layer")
