"""Launches whose machine code is checked: every op as the package calls it at 7B, on tensors of that kind."""

from functools import partial

import torch

from wagle_kernels import FORMULAS, Candidates, Layout, ScoreSpec, triton_ops
from wagle_kernels.triton_ops.compaction import BY_BITS, BY_INDICES
from wagle_kernels.triton_ops.scoring import NARROW
from wagle_kernels.triton_ops.tiles import WIDE

NUMEL = 2**18
STEP = dict(step=5, lr=1e-5, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1, grad_scale=0.5)

_weight = torch.zeros(NUMEL, dtype=torch.bfloat16)
_statistic = torch.zeros(NUMEL)
_packed = torch.zeros(NUMEL // 8, dtype=torch.uint8)
_inside = torch.zeros(NUMEL // 8192, dtype=torch.int32)
_sparse = torch.full((NUMEL // 8,), 1, dtype=torch.uint8)


def _partition(formula: str):
    triton_ops.score_partition(
        _packed,
        _inside,
        Candidates.allocate(5, 9, NUMEL, 4096, torch.device("cpu")),
        _weight,
        _statistic,
        _statistic,
        ScoreSpec(formula, 0.05),
    )


def _histogram():
    counts = torch.zeros(256, dtype=torch.int64)
    triton_ops.score_histogram(counts, _weight, _statistic, _statistic, ScoreSpec("wagle", 0.05), shift=16, prefix=3)


def _ties():
    triton_ops.add_ties(
        _packed, _inside, _weight, _statistic, _statistic, ScoreSpec("ratio", 0.05), key=5, ties=9, offset=16
    )


def _compact(indexed: bool):
    layout = Layout.of([_sparse], [NUMEL], indexed=indexed)
    return layout, layout.num_selected


def _compress(indexed: bool, accumulate: bool, dtype: torch.dtype = torch.float32):
    layout, selected = _compact(indexed)
    squares = torch.zeros(layout.tiles[-1])
    triton_ops.compress(_weight, layout, 0, torch.zeros(selected, dtype=dtype), accumulate=accumulate, squares=squares)


def _scatter(indexed: bool):
    layout, selected = _compact(indexed)
    triton_ops.scatter(_weight, layout, 0, torch.zeros(selected, dtype=torch.bfloat16))


def _adamw(indexed: bool, state_bits: int, split: bool = True, dtype: torch.dtype = torch.bfloat16):
    layout, selected = _compact(indexed)
    state = {}
    moments = torch.zeros(selected), torch.zeros(selected)
    if state_bits == 8:
        moments = torch.zeros(selected, dtype=torch.int8), torch.zeros(selected, dtype=torch.uint8)
        scales = torch.zeros(int(layout.groups[-1]), dtype=torch.uint8)
        state = {"exp_avg_exponent": scales, "exp_avg_sq_exponent": scales}
    if split:
        state["remainder"] = torch.zeros(selected, dtype=torch.int16)
    triton_ops.adamw([_weight.to(dtype)], layout, torch.zeros(selected), *moments, **state, **STEP)


CASES = {
    **{f"partition by {formula}": partial(_partition, formula) for formula in FORMULAS},
    "histogram": _histogram,
    "ties": _ties,
    "score": lambda: triton_ops.score(_weight, _statistic, _statistic, ScoreSpec("wagle", 0.05)),
    "accumulate": lambda: triton_ops.accumulate(_statistic, _weight),
    "accumulate squares": lambda: triton_ops.accumulate(_statistic, _weight, squared=True),
    "compress by indices": partial(_compress, True, False),
    "compress by indices to bf16": partial(_compress, True, False, torch.bfloat16),
    "compress by indices, adding": partial(_compress, True, True),
    "compress by bits": partial(_compress, False, False),
    "compress by bits, adding": partial(_compress, False, True),
    "compress by bits to bf16": partial(_compress, False, False, torch.bfloat16),
    "scatter by indices": partial(_scatter, True),
    "scatter by bits": partial(_scatter, False),
    "AdamW by indices, 32-bit": partial(_adamw, True, 32),
    "AdamW by indices, 8-bit": partial(_adamw, True, 8),
    "AdamW by indices, 32-bit, fp32 weights": partial(_adamw, True, 32, False, torch.float32),
    "AdamW by bits, 32-bit": partial(_adamw, False, 32),
    "AdamW by bits, 8-bit": partial(_adamw, False, 8),
    "AdamW by bits, 32-bit, fp32 weights": partial(_adamw, False, 32, False, torch.float32),
    "pack": lambda: triton_ops.pack(torch.zeros(NUMEL, dtype=torch.bool)),
    "unpack": lambda: triton_ops.unpack(_packed, NUMEL),
    "popcount": lambda: triton_ops.popcount(_packed),
}


def elements(case: str) -> int:
    """Elements that a program works on at a time: what its instructions are divided by."""
    if "by indices" in case:
        return BY_INDICES["CHUNK"]
    if case.startswith(("partition", "ties")):
        return 8 * NARROW["ROWS"]
    return 8 * (BY_BITS if "by bits" in case else WIDE)["ROWS"]
