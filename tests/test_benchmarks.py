"""The benchmark of the kernels, whole, at a small size."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_benchmark_of_the_kernels_runs_and_keeps_its_rows(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "kernels", "--layers", "1", "--rounds", "1", "--densities", "0.05"]
    command += ["--output", str(tmp_path / "kernels.json")]
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "kernels.json").read_text(encoding="utf-8"))
    assert result["environment"]["versions"]["torch"] and result["copy_bandwidth"] > 0
    rows = result["rows"]
    assert {row["kernel"] for row in rows} >= {"score + select + write", "compress", "scatter", "masked step"}
    providers = {row["provider"] for row in rows if row["kernel"] == "masked step"}
    assert {"ours, 8-bit", "ours, 32-bit", "torch AdamW fused + gradient mask"} <= providers
    assert all(row["median_ms"] > 0 and row["bytes_moved"] > 0 for row in rows)
    with (tmp_path / "kernels.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
