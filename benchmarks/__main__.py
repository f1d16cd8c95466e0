"""`python -m benchmarks NAME [options]` runs `benchmarks/NAME.py`, or `benchmarks/NAME/__main__.py`."""

import runpy
import sys

NAMES = (
    "defaults",
    "deltas",
    "fused_heads",
    "kernels",
    "mask_selection",
    "memory",
    "merging",
    "objective_memory",
    "objectives",
    "peers",
    "plans",
    "saving",
    "study",
    "tuning",
)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"usage: python -m benchmarks {{{','.join(NAMES)}}} [options]")
    del sys.argv[0]
    runpy.run_module(f"benchmarks.{sys.argv[0]}", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    main()
