"""`wagle verify`, `delta`, `apply`, `undo` and `adapter` on a pair of models with 1.1 B weights, and the size of deltas.

The weights are random, in bf16 and in the shapes of a Llama; a share of those in the layers, chosen at random, moved.
Each command runs in a process of its own, in turn, after one unmeasured run that fills the page cache; seconds and peak
resident memory are of the whole process, the start of Python included. With `--before CHECKOUT`, the same of another
checkout of this repository, command by command in turn with this one.

    python -m benchmarks deltas --before ../before
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import wagle_kernels
from benchmarks.environment import checkouts_beside, variables_of, write_result
from wagle_trl.deltas.delta import SparseDelta
from wagle_trl.files.tensor_file import LazyTensors, write_tensors
from wagle_trl.masks.info import MaskInfo
from wagle_trl.masks.mask import WeightMask

CONFIG = dict(
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_attention_heads=32,
    num_key_value_heads=4,
)
DENSITIES = (0.001, 0.01, 0.05, 0.1, 0.5)
DENSITY = 0.05  # of the pair
COMMANDS = {
    "start": ("verify", "--help"),
    "verify": ("verify", "../base", "../unlearned"),
    "delta": ("delta", "../base", "../unlearned", "--undo", "--output_dir", "delta"),
    "apply": ("apply", "delta", "../base", "--output_dir", "made"),
    "undo": ("undo", "delta", "made", "--output_dir", "back"),
    "adapter": ("adapter", "delta", "../base", "--output_dir", "adapter"),
}
RESULT = Path(__file__).parent / "results" / "deltas.json"


def shapes_of(layers: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**CONFIG, num_hidden_layers=layers))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def generator(name: str, salt: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash((salt, *name.encode())) % 2**63)


def weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Random bf16 weights, the same whenever they are asked for."""
    return torch.randn(shape, generator=generator(name, 0)).mul_(0.02).to(torch.bfloat16)


def random_mask(shapes: dict[str, tuple[int, ...]], density: float) -> WeightMask:
    """Weights in the layers, each selected with probability `density`."""
    bits = {
        name: wagle_kernels.pack(torch.rand(math.prod(shape), generator=generator(name, 1)) < density)
        for name, shape in shapes.items()
        if ".layers." in name
    }
    return WeightMask(bits, shapes, MaskInfo(score="random", base_model="base"))


def write_pair(folder: Path, layers: int) -> None:
    """The folders `base` and `unlearned`, the latter with its mask."""
    shapes = shapes_of(layers)
    mask = random_mask(shapes, DENSITY)
    specs = {name: (torch.bfloat16, shape) for name, shape in shapes.items()}

    def moved(name: str) -> torch.Tensor:
        values = weights(name, shapes[name])
        return torch.where(mask.dense(name), values * 1.01, values) if name in mask.bits else values

    for place, read in {"base": lambda name: weights(name, shapes[name]), "unlearned": moved}.items():
        (folder / place).mkdir()
        write_tensors(folder / place / "model.safetensors", specs, read, {"format": "pt"})
        LlamaConfig(**CONFIG, num_hidden_layers=layers).save_pretrained(folder / place)
    mask.save(folder / "unlearned")


# Not by `ru_maxrss`, which remembers the process that started this one
_WAGLE = """
import re, sys
from pathlib import Path
from wagle_trl.cli.main import main
with open(sys.argv[1], "w") as out:
    try:
        status = main(sys.argv[2:])
    except SystemExit as stop:  # of --help
        status = stop.code
    out.write(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(status)
"""


def measure(checkout: Path, folder: Path, *argv: str) -> dict[str, float]:
    """Seconds and peak resident bytes of `wagle ARGV` in `folder`, by the code of a checkout."""
    begin = time.perf_counter()
    command = [sys.executable, "-c", _WAGLE, "peak.txt", *argv]
    subprocess.run(
        command,
        cwd=folder,
        env=variables_of(checkout),
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "peak_bytes": 1024 * int((folder / "peak.txt").read_text())}


def measure_commands(
    folder: Path, checkouts: dict[str, Path], rounds: int
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Every command of every checkout in turn; what apply and undo made is compared with what they should have made."""
    results = {checkout: {name: [] for name in COMMANDS} for checkout in checkouts}
    for checkout in checkouts:
        (folder / checkout).mkdir()
    for number in range(rounds + 1):
        for name, argv in COMMANDS.items():
            for checkout, code in checkouts.items():
                result = measure(code, folder / checkout, *argv)
                if name == "adapter":
                    result["bytes"] = sum(path.stat().st_size for path in (folder / checkout / "adapter").iterdir())
                    shutil.rmtree(folder / checkout / "adapter")
                if number:  # the first round fills the page cache
                    results[checkout][name].append(result)
        for checkout in checkouts:
            for made, expected in (("made", "unlearned"), ("back", "base")):
                files = [folder / checkout / made / "model.safetensors", folder / expected / "model.safetensors"]
                if subprocess.run(["cmp", *map(str, files)]).returncode:
                    raise RuntimeError(f"'{made}' is not '{expected}'.")
                shutil.rmtree(folder / checkout / made)
    return results


def medians_of(rounds: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for name, results in rounds.items()
    }


def sizes(folder: Path, layers: int) -> list[dict[str, Any]]:
    """Bytes of deltas, with and without old values, beside those of the bf16 model."""
    shapes = shapes_of(layers)
    model_bytes = 2 * sum(map(math.prod, shapes.values()))
    dtypes = dict.fromkeys(shapes, torch.bfloat16)
    rows = []
    for density in DENSITIES:
        mask = random_mask(shapes, density)
        values = LazyTensors(mask.bits, lambda name: torch.zeros(mask.num_selected_of(name), dtype=torch.bfloat16))  # noqa: B023
        for old in (None, values):
            path = SparseDelta(mask, values, dtypes, "0" * 16, old).save(folder / "sized.safetensors")
            row = {"density": density, "old_values": old is not None, "bytes": path.stat().st_size}
            rows.append(row | {"of_model": row["bytes"] / model_bytes})
            path.unlink()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--folder", type=Path, help="where models are written: on the disk to measure")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    checkouts = checkouts_beside(args.before)
    with TemporaryDirectory(prefix="wagle-deltas-", dir=args.folder) as temporary:
        folder = Path(temporary)
        write_pair(folder, args.layers)
        rounds = measure_commands(folder, checkouts, args.rounds)
        size = (folder / "base" / "model.safetensors").stat().st_size
        rows = sizes(folder, args.layers)
    medians = medians_of(rounds["now"])
    result = {
        "weights": sum(map(math.prod, shapes_of(args.layers).values())),
        "density": DENSITY,
        "model_bytes": size,
        "verify_bytes_a_second": 2 * size / medians["verify"]["seconds"],
        "median": medians,
        "sizes": rows,
        "rounds": rounds["now"],
    }
    if args.before:
        before = medians_of(rounds["before"])
        result |= {"median_before": before, "rounds_before": rounds["before"]}
        result["of_before"] = {name: medians[name]["seconds"] / before[name]["seconds"] for name in COMMANDS}
    write_result(args.output, result)
    print(json.dumps({key: value for key, value in result.items() if not key.startswith("rounds")}, indent=2))


if __name__ == "__main__":
    main()
