"""What the planner says of models too large to measure without a GPU: predicted, not measured.

python -m benchmarks plans
"""

import argparse
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.environment import write_result
from benchmarks.memory import SHAPES
from wagle_trl.attribution.config import MaskConfig
from wagle_trl.memory.simulation import losses_on_gpu
from wagle_trl.planning.planner import Planner, Setup

CAPACITIES = (24, 40, 80)  # GB
DENSITIES = (0.05, 0.1, 0.5, 0.95)
RESULT = Path(__file__).parent / "results" / "memory_plans.json"


def build(shape: str, dtype: str) -> nn.Module:
    return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[shape].model), dtype=getattr(torch, dtype))


def plans(shape: str) -> list[dict[str, Any]]:
    """NPO with 8-bit moments, at the shape's own number of rows, length and accumulation."""
    planner = Planner(partial(build, shape), losses_on_gpu, on_gpu=True, host=0)
    rows = []
    for density, accumulator in product(DENSITIES, ("float32", "bfloat16")):
        setup = Setup(
            mask_config=MaskConfig(mask_density=density, attribution_memory="auto"),
            mask=None,
            dtype="bfloat16",
            optim="adamw_8bit",
            per_device_train_batch_size=SHAPES[shape].rows,
            gradient_accumulation_steps=SHAPES[shape].accumulation,
            gradient_checkpointing=True,
            max_length=SHAPES[shape].length,
            bf16=True,
            accumulator_dtype=accumulator,
        )
        for capacity in CAPACITIES:
            plan = planner.plan(setup, int(capacity * 1e9)).to_dict()
            options = {"shape": shape, "density": density, "accumulator": accumulator, "capacity_gb": capacity}
            rows.append(options | plan)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    columns = ("shape", "density", "accumulators", "GPU", "training, GB", "attribution, GB", "by", "fits")
    table = Table(*columns, title="Predicted peaks")
    for row in rows:
        sweeps = f" ({row['attribution_sweeps']})" if row["attribution_memory"] == "sweeps" else ""
        peaks = (f"{row[f'{phase}_peak_bytes'] / 1e9:.1f}" for phase in ("training", "attribution"))
        fits = "yes" if row["fits"] else "no"
        gpu = f"{row['capacity_gb']} GB"
        options = (row["shape"], str(row["density"]), row["accumulator"], gpu)
        table.add_row(*options, *peaks, row["attribution_memory"] + sweeps, fits)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks plans", description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", nargs="+", default=["llama2-7b", "llama3.1-8b"], choices=list(SHAPES))
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    rows = [row for shape in args.shape for row in plans(shape)]
    show(rows)
    write_result(args.output, {"note": "predicted from the models' configs, nothing measured", "rows": rows})


if __name__ == "__main__":
    main()
