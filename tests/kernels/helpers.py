"""What the tests of the kernels share."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

import wagle_kernels
from wagle_kernels import TILE, Candidates, Layout, ScoreSpec
from wagle_kernels.reference.eight_bit import decode_signed, decode_unsigned

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETED = DEVICE.type == "cpu"

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [0, 1, 7, 8, 9, 1001]
TILED_SIZES = [*SIZES, TILE, TILE + 1, 20011]
CODINGS = ["indices", "bits"]  # of the positions in a layout


def sizes(every=True):
    """Every size of `TILED_SIZES` for one case of a kernel; for the others one below a tile and one above, both odd."""
    return TILED_SIZES if every else [1001, TILE + 1]


def walk_tiles_in_two_steps(monkeypatch):
    """In the interpreter a step costs the same for any width: walk a tile in two steps of the same code."""
    if not INTERPRETED:
        return
    from wagle_kernels.triton_ops import compaction, scoring

    for options in (compaction.BY_BITS, scoring.NARROW):
        monkeypatch.setitem(options, "ROWS", TILE // 16)
        monkeypatch.setitem(options, "STEPS", 2)
    monkeypatch.setitem(compaction.BY_INDICES, "CHUNK", TILE // 2)


# Inputs


def tensors(numel, dtype=torch.float32, seed=0):
    """theta, forget and retain statistic."""
    generator = torch.Generator().manual_seed(seed)
    theta, forget, retain = (torch.randn(numel, generator=generator) for _ in range(3))
    return (theta * 0.02).to(dtype), forget * 1e-3, retain * 1e-3


def random_bits(numel, density=0.3, seed=0):
    return torch.rand(numel, generator=torch.Generator().manual_seed(seed)) < density


def masks_of(density, numels):
    """Masks of the tensors of one layout."""
    return [random_bits(numel, density, seed=i) for i, numel in enumerate(numels)]


def random_patterns(numel, dtype, seed=0):
    """Any bits: NaN, inf, subnormals."""
    integer = integer_of(dtype)
    info, generator = torch.iinfo(integer), torch.Generator().manual_seed(seed)
    return torch.randint(info.min, info.max, (numel,), generator=generator).to(integer).view(dtype)


def integer_of(dtype):
    return torch.int32 if dtype == torch.float32 else torch.int16


def bits_of(tensor):
    """Bit patterns of floating-point numbers, on the CPU: equal also where they are NaN."""
    return tensor.cpu().view(integer_of(tensor.dtype)) if tensor.is_floating_point() else tensor.cpu()


def make_layout(masks, *, indexed=None, device="cpu"):
    packed = [wagle_kernels.pack(mask).to(device) for mask in masks]
    return Layout.of(packed, [mask.numel() for mask in masks], indexed=indexed)


# Selection


@dataclass
class Partition:
    """What `score_partition` leaves, on the CPU."""

    packed: Tensor
    inside: Tensor
    candidates: Candidates

    @property
    def counts(self) -> list[int]:
        return self.candidates.counts.tolist()

    @property
    def codes(self) -> list[int]:
        """Stored codes, in rising order."""
        return sorted(self.candidates.codes[: self.candidates.counts[1]].tolist())


def partition(inputs, spec, low, high, *, capacity, numel=None, offset=0, backend="reference"):
    """`score_partition` of some tensors, which are moved to the backend's device."""
    device = DEVICE if backend == "triton" else torch.device("cpu")
    inputs = [None if x is None else x.to(device) for x in inputs]
    size = inputs[0].numel()
    packed = torch.full(((size + 7) // 8,), 0xFF, dtype=torch.uint8, device=device)  # overwritten
    inside = torch.full(((size + TILE - 1) // TILE,), -1, dtype=torch.int32, device=device)
    candidates = Candidates.allocate(low, high, numel or size, capacity, device)
    wagle_kernels.score_partition(packed, inside, candidates, *inputs, spec, offset=offset, backend=backend)
    candidates = replace(candidates, codes=candidates.codes.cpu(), counts=candidates.counts.cpu())
    return Partition(packed.cpu(), inside.cpu(), candidates)


def keys_of(inputs, spec, offset=0):
    """Score keys, numpy."""
    return wagle_kernels.score(*inputs, spec, offset=offset, backend="reference").view(torch.int32).numpy()


def packed_by_numpy(bits):
    return np.packbits(bits, bitorder="little")


# AdamW


@dataclass
class State:
    """Everything that a step of AdamW reads and writes."""

    weights: list[Tensor]
    exp_avg: Tensor
    exp_avg_sq: Tensor
    remainder: Tensor | None = None
    exp_avg_exponent: Tensor | None = None
    exp_avg_sq_exponent: Tensor | None = None

    @classmethod
    def zeros(cls, weights, layout, *, state_bits=32, split=False):
        """Moments of zero, and a remainder of zero where asked."""
        selected, groups = layout.num_selected, int(layout.groups[-1])
        dtypes = (torch.float32, torch.float32) if state_bits == 32 else (torch.int8, torch.uint8)
        moments = [torch.zeros(selected, dtype=dtype) for dtype in dtypes]
        remainder = torch.zeros(selected, dtype=torch.int16) if split else None
        exponents = [torch.zeros(groups, dtype=torch.uint8) if state_bits == 8 else None for _ in range(2)]
        return cls(weights, *moments, remainder, *exponents)

    def map(self, function) -> "State":
        """The state with a function applied to every tensor."""
        values = [getattr(self, field.name) for field in fields(self)]
        return State(
            *([function(w) for w in v] if isinstance(v, list) else None if v is None else function(v) for v in values)
        )

    def step(self, layout, grad, *, backend="reference", **options) -> None:
        """One step in place."""
        state = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        moments = state.pop("exp_avg"), state.pop("exp_avg_sq")
        wagle_kernels.adamw(self.weights, layout, grad, *moments, **state, **options, backend=backend)

    def moments(self, groups) -> tuple[Tensor, Tensor]:
        """Both moments in fp32; `groups` is the group of every compact element."""
        if self.exp_avg_exponent is None:
            return self.exp_avg.clone(), self.exp_avg_sq.clone()
        return (
            decode_signed(self.exp_avg, self.exp_avg_exponent[groups]),
            decode_unsigned(self.exp_avg_sq, self.exp_avg_sq_exponent[groups]),
        )

    def masters(self, masks) -> Tensor:
        """Selected weights in fp32, with their low bits."""
        selected = torch.cat([weight[mask] for weight, mask in zip(self.weights, masks)])
        if self.remainder is None:
            return selected.float()
        return wagle_kernels.join_split(selected, self.remainder)


def exact_adamw(master, grad, m, v, *, step, lr, beta1, beta2, eps, weight_decay, grad_scale=1.0):
    """Weights and moments after a step, in fp64."""
    master, grad, m, v = (x.double() for x in (master, grad, m, v))
    grad = grad * grad_scale
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad**2
    update = m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + eps)
    return master - lr * weight_decay * master - lr * update, m, v


# Comparison


def assert_not_worse(ours, theirs, exact, tolerance):
    """Our error against fp64 is at most that of the specification, plus a tolerance."""
    ours, theirs = ((x.cpu().double() - exact).abs() for x in (ours, theirs))
    excess = ours - theirs - tolerance
    assert not (excess > 0).any(), f"{int((excess > 0).sum())} of {excess.numel()}, by up to {excess.max()}"


# Bad calls: one way to call every op with a tensor `x` in the place of all its tensors

SPEC = ScoreSpec("wagle", scale=0.05)
STEP = dict(step=1, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0)


def _none_selected():
    return Layout.of([torch.zeros(2, dtype=torch.uint8)], [16])


def _partition(x, **kw):
    candidates = Candidates.allocate(0, 1, 16, 1, x.device)
    wagle_kernels.score_partition(
        torch.zeros(2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int32), candidates, x, x, x, SPEC, **kw
    )


def _ties(x, **kw):
    masks = torch.zeros(2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int32)
    wagle_kernels.add_ties(*masks, x, x, x, SPEC, key=1, ties=1, **kw)


CALLS = {
    "score": lambda x, **kw: wagle_kernels.score(x, x, x, SPEC, **kw),
    "score_histogram": lambda x, **kw: wagle_kernels.score_histogram(torch.zeros(256), x, x, x, SPEC, shift=0, **kw),
    "score_partition": _partition,
    "add_ties": _ties,
    "pack": lambda x, **kw: wagle_kernels.pack(x, **kw),
    "unpack": lambda x, **kw: wagle_kernels.unpack(x, 16, **kw),
    "popcount": lambda x, **kw: wagle_kernels.popcount(x, **kw),
    "compress": lambda x, **kw: wagle_kernels.compress(x, _none_selected(), 0, torch.zeros(0), **kw),
    "scatter": lambda x, **kw: wagle_kernels.scatter(x, _none_selected(), 0, compact=torch.zeros(0), **kw),
    "accumulate": lambda x, **kw: wagle_kernels.accumulate(torch.zeros(16), grad=x, **kw),
    "adamw": lambda x, **kw: wagle_kernels.adamw([x], _none_selected(), x, x, x, **STEP, **kw),
}
