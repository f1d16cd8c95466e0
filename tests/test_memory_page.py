"""The numbers of docs/memory.md are those of the results."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")


def rows_of(name):
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))["rows"]


def cells_after(mark):
    """Cells of the first table after a mark, without its head."""
    table = re.findall(r"(?:^\|.*\n)+", PAGE[PAGE.index(mark) :], re.MULTILINE)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def smallest_gpu(plans):
    return min(plan["capacity_gb"] for plan in plans if plan["fits"])


def test_the_page_quotes_the_plans():
    plans, shape = rows_of("memory_plans.json"), ""
    for label, density, *cells in cells_after("**Predicted**"):
        shape = label.lower().replace("llama-", "llama") or shape
        of_row = [plan for plan in plans if (plan["shape"], plan["density"]) == (shape, float(density))]
        exact, rounded = ([plan for plan in of_row if plan["accumulator"] == f"{d}"] for d in ("float32", "bfloat16"))
        fits = [smallest_gpu(exact), smallest_gpu(rounded)]
        expected = [f"{found[0]['training_peak_bytes'] / 1e9:.1f}" for found in (exact, rounded)]
        assert [*cells[:2], *re.findall(r"(\d+) GB", cells[3])] == expected + [str(gpu) for gpu in dict.fromkeys(fits)]
        if cells[2]:
            small = exact[0]
            assert small["capacity_gb"] == 24
            assert cells[2] == f"{small['attribution_peak_bytes'] / 1e9:.1f} in {small['attribution_sweeps']} sweeps"


def number(text):
    return [float(found) for found in re.findall(r"[\d.]+", text)]


def test_the_page_quotes_what_was_measured():
    cases = [
        [("published", None, None)],
        [("gradient_release", None, None)],
        [("dense", None, None)],
        [("bitsandbytes", None, None)],
        [("ours", 0.5, 8), ("ours", 0.5, 32)],
        [("ours", 0.05, 8), ("ours", 0.05, 32)],
    ]
    rows = [row for row in rows_of("memory_cpu.json") if row["shape"] == "1b"]
    training = {(r["recipe"], r["density"], r["state_bits"]): r for r in rows if r["run"] == "training"}
    table = cells_after("**Measured**")
    for (_, *cells), names in zip(table, cases, strict=False):
        found = [training[name] for name in names]
        assert number(cells[0]) == [round(row["peak_bytes"] / 1e9, 2) for row in found]
        for cell, key in zip(cells[1:], ("of_published", "of_dense"), strict=True):
            assert number(cell) == [round(row[key], 2) for row in found]
    attribution = {row["tier"]: row for row in rows if row["run"] == "attribution"}
    peaks = [attribution[tier]["peak_bytes"] / 1e9 for tier in ("sweeps", "resident")]
    assert number(table[6][1]) == [round(peak, 2) for peak in peaks]
    assert f"in {attribution['sweeps']['sweeps']} sweeps" in table[6][0] and len(table) == 7


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        (
            "memory_cpu.json",
            lambda row: (row["predicted_of_measured"] or 1) - 1,
            "our {} peaks were at most 1.7 % off",
        ),
        ("objective_memory.json", lambda row: row["error"], "All {} plans were at most 0.1 % off"),
    ],
)
def test_the_page_says_how_exact_plans_were(name, error, said):
    rows = rows_of(name)
    rows = [row for row in (rows.values() if isinstance(rows, dict) else rows) if row.get("predicted_bytes")]
    allowed = float(re.findall(r"most ([\d.]+) %", said)[0])
    assert max(100 * abs(error(row)) for row in rows) < allowed
    assert said.format(len(rows)) in PAGE
