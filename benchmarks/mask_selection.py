"""Time and memory of mask selection: one pass and an exact ranking of what is near the
threshold, against the published way.

The published way scores every parameter, concatenates all scores, ranks them by two argsorts and cuts the ranks into
boolean masks. Both sides start from the same weights and gradients (WAGLE score, fp32) and must select the same
weights, up to ties, which is checked once on at most 20 M weights. Each round runs in a fresh process, so that a peak
is that side's own.

    python -m benchmarks mask_selection --millions 200
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.environment import write_result
from benchmarks.measure import PeakMemory, resident_bytes
from wagle_kernels import ScoreSpec
from wagle_trl.attribution.lazy_scores import LazyScores
from wagle_trl.attribution.selection import select
from wagle_trl.masks.mask import WeightMask

CHECKED_MILLIONS = 20  # the check holds both sides' temporaries in one process
RESULT = Path(__file__).parent / "results" / "mask_selection.json"
PARAMETER = 5_000_000
DENSITY = 0.05
GAMMA = 0.05


def inputs(millions: int) -> tuple[dict, dict, dict]:
    """Weights and gradients of synthetic parameters of 5 M elements."""
    torch.manual_seed(0)
    names = [f"layers.{i}.weight" for i in range(millions * 1_000_000 // PARAMETER)]
    return tuple({name: torch.randn(PARAMETER).mul_(scale) for name in names} for scale in (0.02, 1e-3, 1e-3))


def ours(theta: dict, forget: dict, retain: dict) -> dict[str, torch.Tensor]:
    mask = select(LazyScores(theta, ScoreSpec("wagle", GAMMA), forget, retain), DENSITY)
    return mask.bits


def score(theta: torch.Tensor, forget: torch.Tensor, retain: torch.Tensor) -> torch.Tensor:
    """The WAGLE score as the published code writes it."""
    return ((theta - retain / GAMMA) * forget).abs()


def published(theta: dict, forget: dict, retain: dict) -> dict[str, torch.Tensor]:
    """Two argsorts over the concatenated negated scores, boolean masks from the ranks."""
    scores = torch.cat([-score(theta[name], forget[name], retain[name]).flatten() for name in theta])
    ranks = torch.argsort(torch.argsort(scores))
    cut = round(len(scores) * DENSITY)
    masks, start = {}, 0
    for name, weight in theta.items():
        masks[name] = (ranks[start : start + weight.numel()] < cut).reshape(weight.shape)
        start += weight.numel()
    return masks


def measure(side: str, millions: int) -> dict[str, float]:
    """Seconds and extra peak memory of one round, in this process."""
    data = inputs(millions)
    before = resident_bytes()
    with PeakMemory() as peak:
        start = time.perf_counter()
        result = {"ours": ours, "published": published}[side](*data)
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "extra_peak_bytes": peak.bytes - before,
        "result_bytes": sum(tensor.numel() for tensor in result.values()),
        "selected": WeightMask(result, {n: t.shape for n, t in data[0].items()}).num_selected
        if side == "ours"
        else sum(int(mask.sum()) for mask in result.values()),
    }


def masks_equal(millions: int) -> float:
    """Jaccard overlap of the two masks; a `RuntimeError` where they differ in more than the choice among equal scores."""
    theta, forget, retain = inputs(millions)
    first = WeightMask(ours(theta, forget, retain), {name: weight.shape for name, weight in theta.items()})
    second = WeightMask.from_dense(published(theta, forget, retain))
    differs = {name: first.dense(name) != second.dense(name) for name in theta}
    tied = torch.cat([score(theta[name], forget[name], retain[name])[where] for name, where in differs.items()])
    if first.num_selected != second.num_selected or tied.unique().numel() > 1:
        raise RuntimeError(f"The two masks differ in {tied.numel()} weights whose scores are not equal.")
    return first.jaccard(second)


def _run_round(side: str, millions: int) -> dict[str, float]:
    """[`measure`] in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.mask_selection", "--side", side, "--millions", str(millions)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=int, default=200, help="weights, in millions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["ours", "published"], help="run one round here and print it")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.millions)))
        return
    equal = masks_equal(min(args.millions, CHECKED_MILLIONS))
    rounds = {"ours": [], "published": []}
    for _ in range(args.rounds):  # in turn, so that a drift of the machine meets both
        for side, results in rounds.items():
            results.append(_run_round(side, args.millions))
    medians = {
        side: {key: statistics.median(r[key] for r in results) for key in results[0]}
        for side, results in rounds.items()
    }
    summary = {
        "weights": args.millions * 1_000_000,
        "density": DENSITY,
        "masks_equal": equal,
        "median": medians,
        "speedup": medians["published"]["seconds"] / medians["ours"]["seconds"],
        "temporaries_bytes": medians["ours"]["extra_peak_bytes"] - medians["ours"]["result_bytes"],
        "rounds": rounds,
    }
    write_result(args.output, summary)
    print(json.dumps({key: value for key, value in summary.items() if key != "rounds"}, indent=2))


if __name__ == "__main__":
    main()
