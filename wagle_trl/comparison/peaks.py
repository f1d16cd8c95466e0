"""Figure of the memory of runs: what was predicted, and what was measured."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files.figure import write_figure
from ..memory.bars import Peak, draw_peaks
from .groups import Group
from .runs import PEAKS, Run

_CONTEXT = "CUDA context"  # a component of plans for a GPU, which torch does not count among what it allocates


def plot_memory(lines: Sequence[Run | Group], path: Path) -> list[Path]:
    """
    Plot the predicted peaks of memory by component, and beside them the measured ones.

    What is measured differs: on a GPU it is what torch allocates, so the CUDA context is left out of the prediction; on a
    CPU it is the resident memory of the whole process.

    Args:
        lines (`list[Run | Group]`): Runs and groups, which the first run stands for. Those without a prediction are left
            out.
        path (`pathlib.Path`): The PNG to write; the PDF has the same name.

    Returns:
        `list[pathlib.Path]`: The files; none if no run has a prediction.
    """
    peaks = [peak for line in lines for peak in _peaks(line)]
    return write_figure(draw_peaks(peaks), path, dpi=200) if peaks else []


def _peaks(line: Run | Group) -> Iterable[Peak]:
    cost = line.members[0].training.get("cost", {})
    measured, plan = cost.get("peak_memory_bytes", {}), cost.get("memory_plan") or {}
    for phase in PEAKS:
        if phase in measured and (components := plan.get(phase)):
            is_of = "allocated by torch" if _CONTEXT in components else "the whole process"
            predicted = {name: size for name, size in components.items() if name != _CONTEXT}
            yield Peak(f"{line.label}: {phase}", predicted, measured[phase], is_of)
