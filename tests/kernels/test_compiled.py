"""Machine code of every kernel, compiled ahead of time: no spills, wide accesses, instructions an element.

Counted are the instructions of a kernel's longest loop, or all where it has none, over the elements that a thread works
on in a turn. Rare branches in the loop count in full: what is executed is less.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton exists on Linux alone")

FOLDER = Path(__file__).parent
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")

# By indices a program works on selected elements alone, everywhere else on all. A ceiling holds for Triton 3.6 to 3.9
# (whose histograms differ by a factor of four); raise or lower it on purpose.
# fmt: off
CEILINGS = {
    #                                          sm_80  sm_90 sm_100 gfx942
    "partition by wagle":                     (  38,   38,   37,   30),
    "partition by gradient":                  (  38,   35,   35,   30),
    "partition by snip":                      (  34,   33,   35,   29),
    "partition by product":                   (  41,   38,   39,   34),
    "partition by magnitude":                 (  32,   32,   31,   24),
    "partition by random":                    (  79,   83,   82,   77),
    "partition by ratio":                     (  58,   56,   56,   45),
    "histogram":                              (  81,   81,   81,   80),
    "ties":                                   (  49,   50,   50,   43),
    "score":                                  (  14,   14,   13,   16),
    "accumulate":                             (   8,    9,    8,   13),
    "accumulate squares":                     (   9,   10,    9,   13),
    "compress by indices":                    (  14,   15,   14,   16),
    "compress by indices to bf16":            (  14,   14,   14,   16),
    "compress by indices, adding":            (  17,   17,   17,   18),
    "compress by bits":                       (  21,   21,   21,   39),
    "compress by bits, adding":               (  31,   31,   30,   47),
    "compress by bits to bf16":               (  23,   22,   22,   39),
    "scatter by indices":                     (  12,   12,   12,   15),
    "scatter by bits":                        (  16,   16,   16,   31),
    "AdamW by indices, 32-bit":               (  54,   57,   51,   64),
    "AdamW by indices, 8-bit":                ( 103,  109,  104,  146),
    "AdamW by indices, 32-bit, fp32 weights": (  42,   46,   43,   56),
    "AdamW by bits, 32-bit":                  (  66,   66,   60,   80),
    "AdamW by bits, 8-bit":                   ( 119,  118,  115,  122),
    "AdamW by bits, 32-bit, fp32 weights":    (  56,   56,   54,   64),
    "pack":                                   (   6,    7,    7,    7),
    "unpack":                                 (   7,    8,    8,    7),
    "popcount":                               (  15,   16,   16,   21),
}
# fmt: on

# Loads of bf16 weights or gradients by rows are 16 bytes wide, and so are stores of whole rows
WIDE_LOADS = [
    c for c in CEILINGS if "by bits" in c or c.startswith(("partition by", "histogram", "ties", "score", "acc"))
]
WIDE_LOADS.remove("partition by random")  # it loads nothing
WIDE_STORES = [c for c in CEILINGS if c.startswith(("score", "accumulate", "scatter by bits", "AdamW by bits"))]


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """Case -> target -> what the compiler made of it; compiled in a process that interprets nothing."""
    out = tmp_path_factory.mktemp("compiled") / "code.json"
    command = [sys.executable, str(FOLDER / "compiled.py"), str(FOLDER / "cases.py"), str(out)]
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def elements():
    """Elements that a program of a case works on at a time."""
    command = [sys.executable, "-c", f"from cases import elements\nprint([elements(c) for c in {list(CEILINGS)}])"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True, timeout=300)
    return dict(zip(CEILINGS, json.loads(done.stdout)))


def test_every_kernel_is_compiled_and_has_a_ceiling(code):
    assert set(code) == set(CEILINGS)
    assert all(set(by_target) == set(TARGETS) for by_target in code.values())


@pytest.mark.parametrize("case", CEILINGS)
def test_nothing_spills_and_no_array_lies_in_local_memory(case, code):
    for target, numbers in code[case].items():
        assert numbers["spill_bytes"] == numbers["local_bytes"] == numbers["local"] == 0, target


@pytest.mark.parametrize("case", CEILINGS)
def test_instructions_an_element_stay_below_their_ceiling(case, code, elements, record_property):
    counts = {t: n["loop_instructions"] * n["threads"] / elements[case] for t, n in code[case].items()}
    record_property("instructions an element", counts)
    ceilings = dict(zip(TARGETS, CEILINGS[case]))
    assert all(counts[target] <= ceilings[target] for target in TARGETS), f"{counts} against {ceilings}"


@pytest.mark.parametrize("case", WIDE_LOADS)
def test_rows_are_loaded_16_bytes_at_a_time(case, code):
    for target in TARGETS[:3]:
        assert "128" in code[case][target]["loads"], code[case][target]["loads"]


@pytest.mark.parametrize("case", WIDE_STORES)
def test_rows_are_stored_16_bytes_at_a_time(case, code):
    for target in TARGETS[:3]:
        assert "128" in code[case][target]["stores"], code[case][target]["stores"]
