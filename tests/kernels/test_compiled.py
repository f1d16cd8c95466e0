"""Machine code of every kernel, compiled ahead of time: no spills, wide accesses, instructions an element.

An instruction count is static: all instructions of a kernel, set-up and rare branches included, over the elements that
a thread works on at a time. Loops run many times, so that what is executed is less.
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

# Instructions an element of an AdamW by indices are those of a selected element, everywhere else of any element.
# A ceiling holds for Triton 3.6 to 3.9; raise or lower it on purpose.
# fmt: off
CEILINGS = {
    #                                          sm_80  sm_90 sm_100 gfx942
    "partition by wagle":                     (  46,   41,   41,   51),
    "partition by gradient":                  (  62,   56,   56,   60),
    "partition by snip":                      (  43,   37,   39,   51),
    "partition by product":                   (  66,   60,   61,   65),
    "partition by magnitude":                 (  41,   36,   36,   44),
    "partition by random":                    ( 126,   90,   89,  120),
    "partition by ratio":                     (  90,   84,   84,   77),
    "histogram":                              (  89,   90,   90,   98),
    "ties":                                   (  62,   63,   63,   57),
    "score":                                  (  14,   14,   13,   17),
    "accumulate":                             (   9,    9,    9,   13),
    "accumulate squares":                     (  10,   10,    9,   14),
    "compress by indices":                    (  24,   24,   24,   36),
    "compress by indices, adding":            (  26,   27,   26,   37),
    "compress by bits":                       (  32,   33,   32,   71),
    "compress by bits, adding":               (  42,   43,   42,   80),
    "compress by bits to bf16":               (  34,   34,   33,   70),
    "scatter by indices":                     (  17,   17,   17,   26),
    "scatter by bits":                        (  21,   21,   21,   55),
    "AdamW by indices, 32-bit":               (  64,   65,   59,   92),
    "AdamW by indices, 8-bit":                ( 113,  117,  112,  179),
    "AdamW by indices, 32-bit, fp32 weights": (  52,   54,   51,   88),
    "AdamW by bits, 32-bit":                  (  75,   77,   70,  119),
    "AdamW by bits, 8-bit":                   ( 130,  131,  127,  160),
    "AdamW by bits, 32-bit, fp32 weights":    (  66,   67,   65,   99),
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
    counts = {t: n["instructions"] * n["threads"] / elements[case] for t, n in code[case].items()}
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
