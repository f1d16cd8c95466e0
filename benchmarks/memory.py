"""Peak memory of attribution and of training: ours, the published recipe, and usual ways to train all weights.

    python -m benchmarks memory --shape 60m 1b                                           # all recipes, on a CPU
    python -m benchmarks memory --shape llama2-7b --recipe ours --run whole --cap 24     # on a GPU

Llama shapes with random bf16 weights. Each case runs in a process of its own. On a CPU its peak is what
[`~wagle_trl.memory.allocations.Allocations`] counts, and the process's resident memory stands beside it as a check, the
interpreter and its libraries included; on a GPU it is what torch allocated. Of ours stands beside it what the
planner says before. Rows are written as they come, and a case that is in the file already is not measured again.
"""

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.environment import ROOT, environment, write_result
from benchmarks.memory_recipes import RECIPES, Case, Run, StepClock
from benchmarks.peers import versions
from wagle_trl.attribution.config import TIERS
from wagle_trl.memory.allocations import Allocations
from wagle_trl.planning.planner import CONTEXT_BYTES

RESULTS = Path(__file__).parent / "results"
RUNS = ("attribution", "training", "whole")


@dataclass(frozen=True)
class Shape:
    """A model and what is measured of it by default. Sweeps of `None`: as few as fit."""

    model: dict[str, Any]
    rows: int = 4
    length: int = 256
    accumulation: int = 4
    densities: tuple[float, ...] = (0.05,)
    tiers: tuple[str, ...] = ("auto",)
    sweeps: int | None = None


def llama(vocabulary: int, width: int, inner: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return dict(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )


ON_CPU = dict(length=128, accumulation=1, tiers=("resident", "sweeps"))
SHAPES = {
    "60m": Shape(llama(16000, 512, 1408, 14, 8, 8), densities=(0.05, 0.1, 0.5, 0.95), sweeps=8, **ON_CPU),
    "1b": Shape(llama(32000, 2048, 5632, 22, 32, 4), rows=1, densities=(0.05, 0.5), sweeps=22, **ON_CPU),
    "llama2-7b": Shape(llama(32000, 4096, 11008, 32, 32, 32)),
    "llama3.1-8b": Shape(llama(128256, 4096, 14336, 32, 32, 8)),
}


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Those that the options ask for."""
    for name in args.shape:
        shape = SHAPES[name]
        common = dict(
            shape=name,
            rows=args.rows or shape.rows,
            length=args.length or shape.length,
            accumulation=args.accumulation or shape.accumulation,
            steps=args.steps,
            device=args.device,
            cap=args.cap,
        )
        for recipe in args.recipe:
            for options in of_ours(args, shape) if recipe == "ours" else [{"run": "training"}]:
                yield Case(recipe=recipe, **options, **common)


def of_ours(args: argparse.Namespace, shape: Shape) -> Iterator[dict[str, Any]]:
    densities = args.density or shape.densities
    tiers = [{"tier": tier, "sweeps": shape.sweeps if tier == "sweeps" else None} for tier in args.tier or shape.tiers]
    if "attribution" in args.run:
        yield from ({"run": "attribution", "density": densities[0], **tier} for tier in tiers)
    if "training" in args.run:
        for density, bits in product(densities, args.state_bits):
            yield {"run": "training", "density": density, "state_bits": bits}
    if "whole" in args.run:
        for density in densities:
            yield {"run": "whole", "density": density, "state_bits": args.state_bits[0], **tiers[-1]}


# In a process of its own


def measure(case: Case) -> list[dict[str, Any]]:
    """A row for each phase of a case."""
    if case.cap:  # the rest of such a GPU is taken by the CUDA context
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((case.cap * 1e9 - CONTEXT_BYTES) / total)
    model = build(case)
    clock, rows = StepClock(), []
    with tempfile.TemporaryDirectory() as folder:
        run = RECIPES[case.recipe](model, case, clock, Path(folder))
        with device_memory(case, model) as memory:
            for phase, call in run.phases.items():
                gc.collect()
                memory.reset_peak()
                reset_resident_peak()
                call()
                rows.append(row(case, run, phase, model, memory.peak))
    if case.device == "cuda" and clock.seconds:  # counting slows a CPU down
        tokens = 2 * case.rows * case.length * case.accumulation
        rows[-1] |= {"seconds_a_step": clock.seconds, "tokens_a_second": tokens / clock.seconds}
    return rows


def row(case: Case, run: Run, phase: str, model: PreTrainedModel, peak: int) -> dict[str, Any]:
    predicted = run.predicted.get(phase)
    return asdict(case) | {
        "phase": phase,
        "statistics": run.statistics if phase == "attribution" else None,
        "weights_bytes": sum(tensor.nbytes for tensor in weights(model)),
        "peak_bytes": peak,
        "peak_rss_bytes": resident_peak(),
        "predicted_bytes": predicted,
        "predicted_of_measured": predicted and predicted / peak,
        "commit": environment()["commit"],
        "note": run.note,
    }


def build(case: Case) -> PreTrainedModel:
    """With random weights, made on the device in bf16 so that nothing larger exists."""
    torch.manual_seed(0)
    special = dict(pad_token_id=0, bos_token_id=None, eos_token_id=2)
    with torch.device(case.device):
        config = LlamaConfig(**SHAPES[case.shape].model, **special)
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def weights(model: PreTrainedModel) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


@contextlib.contextmanager
def device_memory(case: Case, model: PreTrainedModel) -> Iterator[Any]:
    """Something with `reset_peak` and `peak`, which counts what was left over before, too."""
    if case.device == "cuda":
        yield CudaMemory()
    else:
        with Allocations(weights(model)) as memory:
            yield memory


class CudaMemory:
    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()


def reset_resident_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def resident_peak() -> int:
    """Of this process, since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


# Over all processes


def in_own_process(case: Case) -> list[dict[str, Any]]:
    """[`measure`], or one row that says why it was not possible."""
    command = [sys.executable, "-m", "benchmarks.memory", "--case", json.dumps(asdict(case))]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=offline, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    print(done.stderr, file=sys.stderr)
    errors = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return [asdict(case) | {"phase": case.run, "note": errors[-1]}]


def case_of(row: dict[str, Any]) -> Case:
    return Case(**{field.name: row[field.name] for field in fields(Case)})


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each with its share of what training takes in the published and in the dense recipe, on as many tokens."""
    measured = [row for row in rows if "peak_bytes" in row]
    peaks = {(row["recipe"], *size(row)): row["peak_bytes"] for row in measured}  # of the others, training alone
    for row in measured:
        for recipe in ("published", "dense"):
            other = peaks.get((recipe, *size(row)))
            row[f"of_{recipe}"] = other and row["peak_bytes"] / other
    return rows


def size(row: dict[str, Any]) -> tuple:
    return tuple(row[name] for name in ("shape", "rows", "length", "accumulation", "device"))


def table(rows: list[dict[str, Any]]) -> Table:
    columns = ("shape", "tokens", "recipe", "run", "phase", "density", "moments", "statistics")
    numbers = ("peak GB", "resident GB", "of published", "of dense", "predicted GB", "/ measured", "s/step")
    result = Table(*columns, *numbers, "note", title="Peak memory")
    for row in rows:
        bits = row["state_bits"]
        result.add_row(
            row["shape"],
            f"{row['rows']} x {row['length']} x {row['accumulation']}",
            row["recipe"],
            row["run"],
            row["phase"],
            cell(row["density"], ".2f"),
            f"{bits} bits" if bits else "",
            row.get("statistics"),
            cell(row.get("peak_bytes"), ".3f", 1e9),
            cell(row.get("peak_rss_bytes"), ".2f", 1e9),
            cell(row.get("of_published"), ".3f"),
            cell(row.get("of_dense"), ".3f"),
            cell(row.get("predicted_bytes"), ".3f", 1e9),
            cell(row.get("predicted_of_measured"), ".3f"),
            cell(row.get("seconds_a_step"), ".3f"),
            row["note"],
        )
    return result


def cell(value: float | None, digits: str, unit: float = 1) -> str:
    return "" if value is None else format(value / unit, digits)


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["llama2-7b"] if gpu else ["60m", "1b"])
    parser.add_argument("--recipe", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--run", nargs="+", choices=RUNS, default=RUNS, help="of ours; the others have training alone")
    parser.add_argument("--density", nargs="+", type=float, help="of ours; by default those of the shape")
    parser.add_argument("--state_bits", nargs="+", type=int, choices=[8, 32], default=[8, 32], help="of ours")
    parser.add_argument("--tier", nargs="+", choices=["auto", *TIERS], help="of ours; by default those of the shape")
    parser.add_argument("--rows", type=int, help="forget rows in a forward pass, with as many others")
    parser.add_argument("--length", type=int, help="tokens in a row")
    parser.add_argument("--accumulation", type=int, help="forward passes in a step")
    parser.add_argument("--steps", type=int, default=20 if gpu else 2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if gpu else "cpu")
    parser.add_argument("--cap", type=float, help="GB of a smaller GPU to stay within, its CUDA context included")
    parser.add_argument("--fresh", action="store_true", help="measure again what is in the file")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--case", type=json.loads, help="measure this one here and print its rows")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(Case(**args.case))))
        return
    if args.cap and args.device == "cpu":
        parser.error("--cap is of a GPU")
    output = args.output or RESULTS / f"memory_{args.device}.json"
    rows = json.loads(output.read_text())["rows"] if output.exists() else []
    for case in cases(args):
        mine = [row for row in rows if case_of(row) == case]
        if not args.fresh and any("peak_bytes" in row for row in mine):
            continue
        print({name: value for name, value in asdict(case).items() if value is not None})
        rows = [row for row in rows if row not in mine] + in_own_process(case)
        write_result(output, {"peers": versions(), "rows": with_ratios(rows)})
    Console(width=200).print(table(with_ratios(rows)))
    if any(row["recipe"] == "ours" and "peak_bytes" not in row for row in rows):
        sys.exit("ours did not run everywhere")


if __name__ == "__main__":
    main()
