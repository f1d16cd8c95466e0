"""The benchmark of the kernels, whole, at a small size; and the tables of README and pages that other results fill."""

import csv
import itertools
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks import objectives
from benchmarks.defaults import table
from benchmarks.objective_memory import VARIANTS, NoProducts
from benchmarks.tables import filled
from benchmarks.worlds import WORLDS
from wagle_trl.memory.allocations import Allocations
from wagle_trl.objectives.names import OBJECTIVES

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


def page(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def rows_of(name, section):
    """Cells of the table rows of a section of a page."""
    text = page(name).split(f"# {section}\n")[1].split("\n#")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def test_the_page_quotes_the_result_of_merging():
    means = {(row["score"], row["arm"]): row for row in result("merging.json")["mean"]}
    arms = {
        "base": ("base", "base"),
        "one run for all": ("wagle", "one run for all"),
        "one run after the other": ("wagle", "one run after the other"),
        "merged, means": ("wagle", "merged, mean"),
        "merged, the last wins": ("wagle", "merged, last wins"),
        "merged without one of the three": ("wagle", "a request revoked"),
    }
    rows = rows_of("publish.md", "What it costs in quality")
    for label, arm in arms.items():
        numbers = [means[arm].get(key) for key in ("the others", "the request", "retain", "unseen retain")]
        assert rows[label] == ["" if number is None else f"{number:.3f}" for number in numbers], label


def test_the_page_quotes_the_result_of_saving():
    rows = {row["training"]: row for row in result("saving.json")["median"] if row["checkout"] == "now"}
    masked, dense = rows["masked"], rows["dense"]
    said = " ".join(page("publish.md").split())
    assert f"{masked['seconds']:.2f} s for a checkpoint with a mask and {dense['seconds']:.2f} s without" in said
    assert f"{masked['of_before']:.2f} and {dense['of_before']:.2f} times" in said
    assert f"whole after {masked['whole_seconds']:.2f} s and {dense['whole_seconds']:.2f} s" in said


def test_the_page_quotes_the_result_of_deltas():
    measured, sizes_said, costs = result("deltas.json"), rows_of("publish.md", "Sizes"), rows_of("publish.md", "Cost")
    sizes = {(row["density"], row["old_values"]): row["of_model"] for row in measured["sizes"]}
    for label, old in {"delta, of the bf16 model": False, "with old values": True}.items():
        expected = [f"{100 * sizes[density, old]:.1f} %" for density in (0.001, 0.01, 0.05, 0.1, 0.5)]
        assert sizes_said[label] == expected
    seconds, peak = costs["`wagle verify` (reads 4.4 GB)"]
    assert seconds == f"{measured['median']['verify']['seconds']:.1f}"
    assert peak == f"{measured['median']['verify']['peak_bytes'] / 1e6:.0f} MB"
    assert measured["median"]["verify"]["peak_bytes"] < 1e9 and measured["verify_bytes_a_second"] > 0.5e9
    assert sizes[0.05, False] <= 0.15


def test_readme_and_documentation_quote_the_result_of_the_defaults():
    rows = result("defaults.json")["rows"]
    of_npo = [row for row in rows if row["objective"] == "npo"]
    for page, shown in {"README.md": of_npo, "docs/settings.md": rows}.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        assert shown and filled(text, {"defaults": table(shown)}) == text


def test_the_tables_of_the_objectives_are_their_results():
    rows = result("objectives.json")["rows"]
    tables = {name: objectives.table([row for row in rows if row["world"] == name]) for name in WORLDS}
    text = objectives.TABLE.read_text(encoding="utf-8")
    assert filled(text, tables) == text
    assert {(row["world"], row["objective"]) for row in rows} == set(itertools.product(WORLDS, OBJECTIVES))


@pytest.mark.parametrize("name", ["people", "records"])
def test_a_world_forgets_less_than_a_tenth_and_its_sets_share_no_person(name):
    sets = WORLDS[name](0, ROOT)
    people = [{row["person"] for row in rows} for rows in sets.values()]
    assert list(sets) == ["forget", "retain", "unseen"]
    assert len(sets["forget"]) < 0.1 * sum(map(len, sets.values())) + 1
    assert sum(map(len, people)) == len(set.union(*people))


@pytest.mark.parametrize("kind", ["npo", "undial"])
def test_what_training_allocates_does_not_depend_on_matrix_products(kind, make_trainer, small_mask, tiny_model):
    peaks = []
    for skipped in (NoProducts(), nullcontext()):
        trainer = make_trainer(
            kind, tiny_model(dtype=torch.bfloat16), mask_config=small_mask, gradient_checkpointing=True
        )
        trainer.compute_mask()
        with skipped, Allocations(trainer.model.parameters()) as memory:
            trainer.train()
        peaks.append(memory.peak)
    assert peaks[0] == peaks[1]
    zero = tiny_model()
    with NoProducts():
        assert not zero(torch.arange(8)[None]).logits.any()


def test_no_objective_holds_a_second_model_and_the_plan_says_so():
    rows = result("objective_memory.json")["rows"]
    assert {VARIANTS[variant][0] for variant in rows} == set(OBJECTIVES)
    for row in rows.values():
        assert abs(row["error"]) < 0.05
        originals = 2 * row["selected"]
        assert row["held_beyond_npo_bytes"] == pytest.approx(row["plan"].get("reference", 0), abs=1e5)
        assert row["held_beyond_npo_bytes"] < originals + 1e7 < row["weights_bytes"] / 10
