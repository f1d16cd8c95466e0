"""
A CPU that rounds otherwise: `python -m pytest -p tests.support.other_machine` finds tests that hold on one machine alone.

Products, sums and elementary functions are computed in fp64 and moved by some roundings of fp32. By how many follows from
the operation and from the shapes, strides and alignment of its arguments: the same call gives the same bits, the same
numbers in another batch, padding or chunk do not. What fp32 holds exactly, such as sums of small integers, stays exact.
The variable `OTHER_MACHINE` chooses among such CPUs: a seed, 0 by default.
"""

import os
import warnings
import zlib
from collections.abc import Callable

import torch
from torch import Tensor

SEED = os.environ.get("OTHER_MACHINE", "0")
# Operations and their variants that write into a given tensor, which stay as they are: the others call them
SUMS = {"mm": "out", "bmm": "out", "addmm": "out", "baddbmm": "out", "mv": "out", "addmv": "out", "dot": "out"}
SUMS |= {"sum.dim_IntList": "IntList_out", "mean.dim": "out"}
FUNCTIONS = dict.fromkeys(("exp", "log", "tanh", "sigmoid", "silu", "gelu", "sin", "cos", "rsqrt", "logsumexp"), "out")
FUNCTIONS |= dict.fromkeys(("_softmax", "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data"), "out")
FUNCTIONS |= {"linalg_vector_norm": "out", "pow.Tensor_Scalar": "Tensor_Scalar_out"}
ROUNDINGS = {"sum": 0.5, "function": 2.0}  # of the sum of absolute values, and of the value, at most


def _map(values, change: Callable) -> list:
    return [change(value) if isinstance(value, Tensor) else value for value in values]


def _rounded_otherwise(name: str, out: str, kind: str) -> Callable:
    """An implementation of an operation on the CPU."""
    packet, _, overload = name.partition(".")
    original, writing = (getattr(getattr(torch.ops.aten, packet), o) for o in (overload or "default", out))
    target = writing._schema.arguments[-1].name
    patterns: dict[str, Tensor] = {}

    def write(dtype: torch.dtype, args, options) -> Tensor:
        return writing(*args, **options, **{target: torch.empty(0, dtype=dtype)})

    def pattern(args, shape: torch.Size) -> Tensor:
        """Numbers from -1 to 1."""
        call = f"{SEED} {name} {_map(args, lambda x: (x.shape, x.stride(), x.data_ptr() % 64))} {shape}"
        if call not in patterns:
            generator = torch.Generator().manual_seed(zlib.crc32(call.encode()))
            patterns[call] = 2 * torch.rand(shape, dtype=torch.float64, generator=generator) - 1
        return patterns[call]

    def implementation(*args, **options) -> Tensor:
        meta = original(*_map(args, lambda x: x.to("meta")), **options)
        if not args[0].is_floating_point() or meta.dtype == torch.float64:
            return write(meta.dtype, args, options)
        wide = [torch.float64 if isinstance(x, torch.dtype) else x for x in _map(args, Tensor.double)]
        wide_options = {key: torch.float64 if isinstance(x, torch.dtype) else x for key, x in options.items()}
        exact = write(torch.float64, wide, wide_options)
        size = write(torch.float64, _map(wide, Tensor.abs), wide_options) if kind == "sum" else exact.abs()
        moved = exact + pattern(args, exact.shape) * ROUNDINGS[kind] * 2**-24 * size
        is_exact = exact.float().double() == exact
        return torch.where(is_exact | ~moved.isfinite(), exact, moved).to(meta.dtype)

    return implementation


library = torch.library.Library("aten", "IMPL")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that operations are replaced is the point
    for kind, table in (("sum", SUMS), ("function", FUNCTIONS)):
        for name, out in table.items():
            library.impl(name, _rounded_otherwise(name, out, kind), "CPU", allow_override=True)
torch.backends.cuda.enable_flash_sdp(False)  # attention on the CPU as products and softmax
