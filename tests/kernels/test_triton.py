"""Every kernel against its specification on the CPU: interpreted here, or compiled where there is a GPU."""

import mmap
from dataclasses import replace

import numpy as np
import pytest
import torch

import wagle_kernels
from wagle_kernels import FORMULAS, NON_FINITE_KEY, TILE, Layout, ScoreSpec

from .helpers import (
    DEVICE,
    DTYPES,
    INTERPRETED,
    SPEC,
    TILED_SIZES,
    Partition,
    State,
    bits_of,
    exact_adamw,
    keys_of,
    make_layout,
    packed_by_numpy,
    partition,
    random_bits,
    random_patterns,
    tensors,
)

pytest.importorskip("triton")

from wagle_kernels.triton_ops import compaction, scoring

SEVERAL = [5, TILE, 0, 9000]  # sizes of the tensors of one layout
CODINGS = ["indices", "bits"]
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy, where lanes are masked
interpreter_only = pytest.mark.skipif(not INTERPRETED, reason="moves the programs of Triton's interpreter")


@pytest.fixture(autouse=True)
def few_steps(request, monkeypatch):
    """In the interpreter a step costs the same for any width: walk a tile in two steps of the same code."""
    if INTERPRETED and "as_launched" not in request.fixturenames:
        for options in (compaction.BY_BITS, scoring.NARROW):
            monkeypatch.setitem(options, "ROWS", TILE // 16)
            monkeypatch.setitem(options, "STEPS", 2)
        monkeypatch.setitem(compaction.BY_INDICES, "CHUNK", TILE // 2)


@pytest.fixture
def as_launched():
    """Steps as the package launches them, also in the interpreter."""


def on_device(values):
    return [None if value is None else aligned(value) for value in values]


def aligned(tensor):
    """A copy on the device."""
    return tensor.to(DEVICE, copy=True)


def misaligned(tensor):
    """The same numbers on the device, one element beyond an aligned address."""
    return torch.cat([tensor.new_zeros(1), tensor]).to(DEVICE)[1:]


def masks_of(density, numels=SEVERAL):
    return [random_bits(numel, density, seed=i) for i, numel in enumerate(numels)]


# Scores


@pytest.mark.parametrize("numel", TILED_SIZES)
@pytest.mark.parametrize("formula", FORMULAS)
def test_scores_have_the_bits_of_the_specification(formula, numel):
    spec = ScoreSpec(formula, scale=0.05, seed=9)
    for seed, dtype in enumerate(DTYPES):
        inputs = tensors(numel, dtype, seed)
        expected = keys_of(inputs, spec, offset=5)
        for place in (on_device, lambda values: [misaligned(value) for value in values]):
            scores = wagle_kernels.score(*place(inputs), spec, offset=5, backend="triton")
            assert np.array_equal(scores.cpu().view(torch.int32).numpy(), expected), dtype


def test_scores_that_are_not_finite_or_subnormal_keep_their_keys():
    values = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 3e38, -3e38, torch.inf, -torch.inf, torch.nan, -torch.nan])
    for spec in (ScoreSpec("magnitude"), ScoreSpec("gradient")):
        scores = wagle_kernels.score(*on_device([values] * 3), spec, backend="triton")
        assert np.array_equal(scores.cpu().view(torch.int32).numpy(), keys_of([values] * 3, spec))


@pytest.mark.parametrize("offset", [2**31 - 100, 2**32 - 100, 2**32, 2**40 - 7])
@pytest.mark.parametrize("seed", [0, 7, 2**31, -1])
def test_random_scores_cross_a_boundary_of_the_index(seed, offset):
    inputs, spec = (torch.zeros(1001), None, None), ScoreSpec("random", seed=seed)
    scores = wagle_kernels.score(*on_device(inputs), spec, offset=offset, backend="triton")
    assert np.array_equal(scores.cpu().view(torch.int32).numpy(), keys_of(inputs, spec, offset))


def assert_same_histograms(numel, formula="wagle", dtype=torch.bfloat16, offset=11):
    inputs, spec = tensors(numel, dtype, seed=numel), ScoreSpec(formula, scale=0.05, seed=3)
    keys = keys_of(inputs, spec, offset)
    for shift in (24, 16, 8, 0):
        options = dict(shift=shift, prefix=int(keys[0]) >> (shift + 8) if numel else 0, offset=offset)
        ours, theirs = torch.full((256,), 5, device=DEVICE), torch.full((256,), 5)
        wagle_kernels.score_histogram(ours, *on_device(inputs), spec, **options, backend="triton")
        wagle_kernels.score_histogram(theirs, *inputs, spec, **options, backend="reference")
        assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("numel", TILED_SIZES)
def test_histograms_are_those_of_the_specification(numel):
    assert_same_histograms(numel)


@pytest.mark.parametrize("formula", FORMULAS)
def test_histograms_are_those_of_the_specification_for_every_formula(formula):
    assert_same_histograms(1001, formula, torch.float16, offset=2**32 - 500)


# Selection


def brackets(keys):
    """Brackets with few keys inside, none inside, all inside, and one key alone."""
    falling = np.sort(keys)[::-1].tolist() or [7]
    middle = falling[len(falling) // 2]
    return {
        "few": (falling[min(len(falling) - 1, 40)], falling[min(len(falling) - 1, 3)]),
        "none": (falling[0] + 1, falling[0] + 2),
        "one": (middle, middle),
    } | ({"all": (0, NON_FINITE_KEY - 1)} if len(keys) < 100 else {})


def assert_same_partition(inputs, spec, low, high, **options):
    ours = partition(inputs, spec, low, high, **options, backend="triton")
    theirs = partition(inputs, spec, low, high, **options)
    assert torch.equal(ours.packed, theirs.packed)
    assert torch.equal(ours.inside, theirs.inside)
    assert ours.counts == theirs.counts
    assert ours.codes == theirs.codes
    return ours


@pytest.mark.parametrize("numel", TILED_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_partitions_are_those_of_the_specification(dtype, numel):
    inputs = tensors(numel, dtype, seed=numel)
    for low, high in brackets(keys_of(inputs, SPEC)).values():
        assert_same_partition(inputs, SPEC, low, high, capacity=numel, numel=numel + 1000, offset=9)


@pytest.mark.parametrize("formula", FORMULAS)
def test_partitions_are_those_of_the_specification_for_every_formula(formula):
    inputs, spec = tensors(TILE + 3, torch.bfloat16), ScoreSpec(formula, scale=0.05, seed=8)
    low, high = brackets(keys_of(inputs, spec, 2**32 - 500))["few"]
    options = dict(capacity=TILE, numel=2**33, offset=2**32 - 500)
    assert_same_partition(inputs, spec, low, high, **options)


@pytest.mark.parametrize("density", [0.001, 0.1])
def test_partitions_in_steps_as_launched_are_those_of_the_specification(density, as_launched):
    inputs = tensors(TILE + 1001)
    keys = np.sort(keys_of(inputs, SPEC))[::-1]
    first = round(density * len(keys))
    assert_same_partition(inputs, SPEC, int(keys[first + 30]), int(keys[first]), capacity=100)


@pytest.mark.parametrize("capacity", [0, 1, 30])
def test_partitions_count_what_exceeds_the_capacity(capacity):
    inputs = tensors(2 * TILE)
    low, high = brackets(keys_of(inputs, SPEC))["few"]
    theirs = partition(inputs, SPEC, low, high, capacity=100)
    ours = partition(inputs, SPEC, low, high, capacity=capacity, backend="triton")
    assert ours.counts == theirs.counts and theirs.counts[1] == 38
    assert torch.equal(ours.packed, theirs.packed) and torch.equal(ours.inside, theirs.inside)
    assert len(ours.codes) == len(set(ours.codes)) == capacity and set(ours.codes) <= set(theirs.codes)


@pytest.mark.parametrize("found", [0, 3, 2**31, 2**32 - 2, 2**33])
def test_candidates_are_never_written_beyond_their_capacity(found):
    """However many were found before: the room left must not wrap around 32 bits."""
    inputs = on_device([tensors(1001)[0], None, None])
    room = torch.full((20,), -1, device=DEVICE)
    candidates = replace(wagle_kernels.Candidates.allocate(0, NON_FINITE_KEY - 1, 1001, 0, DEVICE), codes=room[:7])
    masks = torch.zeros(126, dtype=torch.uint8, device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    candidates.counts[1] = found
    for _ in range(2):
        wagle_kernels.score_partition(*masks, candidates, *inputs, ScoreSpec("magnitude"), backend="triton")
    assert candidates.counts.tolist()[:2] == [0, found + 2002]
    assert (room[found:7] >= 0).all() and (room[:found] == -1).all() and (room[7:] == -1).all()


def test_ties_after_more_than_32_bits_of_them_are_not_selected():
    values = torch.ones(3 * TILE, device=DEVICE)
    inside = torch.tensor([2**31 - 1, 2**31 - 1, TILE], dtype=torch.int32, device=DEVICE)  # as of a huge tensor
    packed = torch.zeros(3 * TILE // 8, dtype=torch.uint8, device=DEVICE)
    key = int(torch.tensor(1.0).view(torch.int32))
    wagle_kernels.add_ties(
        packed, inside, values, None, None, ScoreSpec("magnitude"), key=key, ties=5, backend="triton"
    )
    assert wagle_kernels.unpack(packed, 3 * TILE).nonzero().view(-1).tolist() == [0, 1, 2, 3, 4]


def test_sizes_that_do_not_fit_the_layout_are_refused():
    layout = make_layout([torch.ones(64, dtype=torch.bool)], device=DEVICE)
    full, short = torch.zeros(64, device=DEVICE), torch.zeros(63, device=DEVICE)
    for dense, compact, message in (
        (short, full, "Tensor 0 has 63 elements"),
        (full, short, "has 63 elements, the la"),
    ):
        for op in (wagle_kernels.compress, wagle_kernels.scatter):
            with pytest.raises(ValueError, match=message):
                op(dense, layout, 0, compact, backend="triton")
        with pytest.raises(ValueError, match=message):
            wagle_kernels.adamw([dense], layout, compact, full, full, step=1, **OPTIONS, backend="triton")
    with pytest.raises(ValueError, match="must have one dtype"):
        two = make_layout([torch.ones(64, dtype=torch.bool)] * 2, device=DEVICE)
        state = [torch.zeros(128, device=DEVICE)] * 3
        wagle_kernels.adamw([full, full.bfloat16()], two, *state, step=1, **OPTIONS, backend="triton")


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_autograd_notices_that_weights_were_written(backend):
    weight = torch.randn(64, device=DEVICE)
    layout = make_layout([torch.ones(64, dtype=torch.bool)], device=DEVICE)
    zeros = [torch.zeros(64, device=DEVICE) for _ in range(2)]
    before = weight._version
    wagle_kernels.adamw([weight.detach()], layout, torch.ones_like(weight), *zeros, step=1, **OPTIONS, backend=backend)
    middle = weight._version
    wagle_kernels.scatter(weight.detach(), layout, 0, torch.ones_like(weight), backend=backend)
    assert before < middle < weight._version


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_the_largest_key_tells_of_scores_that_are_not_finite(bad):
    values = tensors(TILE + 5)[0]
    values[TILE + 3] = bad
    high = NON_FINITE_KEY - 1
    ours = assert_same_partition((values, None, None), ScoreSpec("magnitude"), high - 1, high, capacity=9)
    assert ours.counts[2] >= NON_FINITE_KEY


def assert_same_ties(inputs, spec, key, ties, offset=0):
    theirs = partition(inputs, spec, key, key, capacity=0, offset=offset)
    ours, inside = aligned(theirs.packed), aligned(theirs.inside)
    options = dict(key=key, ties=ties, offset=offset)
    wagle_kernels.add_ties(ours, inside, *on_device(inputs), spec, **options, backend="triton")
    wagle_kernels.add_ties(theirs.packed, theirs.inside, *inputs, spec, **options, backend="reference")
    assert torch.equal(ours.cpu(), theirs.packed)


@pytest.mark.parametrize("numel", TILED_SIZES)
def test_ties_are_those_of_the_specification(numel):
    values = torch.randint(1, 5, (numel,), generator=torch.Generator().manual_seed(numel)).float()
    values[TILE : 2 * TILE] = 3.0  # a tile without ties
    key = int(torch.tensor(2.0).view(torch.int32))
    equal = int((values == 2).sum())
    for ties in {0, 1, equal // 2, equal - 1, equal, equal + 1, 2**40}:
        assert_same_ties((values, None, None), ScoreSpec("magnitude"), key, ties)


def test_ties_in_steps_as_launched_are_those_of_the_specification(as_launched):
    values = torch.randint(1, 5, (TILE + 1001,), generator=torch.Generator().manual_seed(0)).float()
    for ties in (1000, 2200):
        assert_same_ties((values, None, None), ScoreSpec("magnitude"), int(torch.tensor(2.0).view(torch.int32)), ties)


@pytest.mark.parametrize("formula", FORMULAS)
def test_ties_are_those_of_the_specification_for_every_formula(formula):
    inputs, spec, offset = tensors(1001, torch.bfloat16), ScoreSpec(formula, scale=0.05, seed=8), 2**32 - 500
    inputs = [torch.cat([x, x]) for x in inputs]
    assert_same_ties(inputs, spec, int(keys_of(inputs, spec, offset)[700]), 1, offset)


def select(pieces, spec, k, backend, *, by_ties):
    """Bits of the `k` largest keys over all pieces, found as the trainers' selection does."""
    keys = np.concatenate([keys_of((piece, None, None), spec) for piece in pieces])
    falling = np.sort(keys)[::-1].tolist()
    last = falling[k - 1]
    low, high = (last, last) if by_ties else (falling[min(k + 40, len(keys) - 1)], falling[max(k - 40, 0)])
    device, numel = DEVICE if backend == "triton" else torch.device("cpu"), len(keys)
    candidates = wagle_kernels.Candidates.allocate(low, high, numel, 0 if by_ties else numel, device)
    masks, offset = [], 0
    for piece in pieces:
        values = piece.to(device), None, None
        packed = torch.zeros((piece.numel() + 7) // 8, dtype=torch.uint8, device=device)
        inside = torch.zeros((piece.numel() + TILE - 1) // TILE, dtype=torch.int32, device=device)
        wagle_kernels.score_partition(packed, inside, candidates, *values, spec, offset=offset, backend=backend)
        masks.append((packed, inside, values))
        offset += piece.numel()
    num_above, num_inside, _ = candidates.counts.tolist()
    rank = k - num_above
    for packed, inside, values in masks if by_ties else ():
        wagle_kernels.add_ties(packed, inside, *values, spec, key=last, ties=rank, backend=backend)
        rank = max(rank - int(inside.sum()), 0)
    bits = [wagle_kernels.unpack(packed, v[0].numel(), backend=backend) for packed, _, v in masks]
    bits = torch.cat(bits).cpu()
    if not by_ties:
        bits[candidates.positions_of(candidates.codes[:num_inside].sort().values[:rank]).cpu()] = True
    return bits


@pytest.mark.parametrize("k", [1, 100, 900, 1216])
def test_masks_are_the_same_for_every_backend_and_way(k):
    pieces = [tensors(numel, torch.bfloat16, seed=numel)[0] for numel in (1001, 0, 8, 200, 7)]
    pieces = [(piece * 500).round() / 8 for piece in pieces]  # many ties
    spec = ScoreSpec("magnitude")
    values = torch.cat(pieces).float().abs().numpy()
    expected = np.zeros(len(values), dtype=bool)
    expected[np.lexsort((np.arange(len(values)), -values))[:k]] = True
    for backend in ("reference", "triton"):
        for by_ties in (False, True):
            mask = select(pieces, spec, k, backend, by_ties=by_ties)
            assert np.array_equal(mask.numpy(), expected), (backend, by_ties)


# Bit masks


@pytest.mark.parametrize("numel", TILED_SIZES)
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_packing_unpacking_and_counting_are_numpys(density, numel):
    bits = random_bits(numel, density, seed=numel)
    expected = torch.from_numpy(packed_by_numpy(bits.numpy()))
    for place in (aligned, misaligned):
        packed = wagle_kernels.pack(place(bits), backend="triton")
        assert torch.equal(packed.cpu(), expected)
        assert torch.equal(wagle_kernels.unpack(place(expected), numel, backend="triton").cpu(), bits)
        assert wagle_kernels.popcount(place(expected), backend="triton") == int(bits.sum())
    out = torch.full_like(packed, 0xAA)
    assert wagle_kernels.pack(bits.to(DEVICE), out=out, backend="triton") is out
    assert torch.equal(out.cpu(), expected)


# Dense <-> compact

DTYPE_PAIRS = [
    *((dtype, torch.float32, accumulate) for dtype in DTYPES for accumulate in (False, True)),
    *((dtype, torch.bfloat16, accumulate) for dtype in DTYPES[:2] for accumulate in (False, True)),
]


def assert_same_compression(density, coding, dtype, out_dtype, accumulate, place=aligned):
    masks = masks_of(density)
    ours, theirs = (make_layout(masks, indexed=coding == "indices", device=d) for d in (DEVICE, "cpu"))
    for tensor, mask in enumerate(masks):
        dense = tensors(mask.numel(), dtype, seed=tensor)[0]
        before = tensors(int(mask.sum()), out_dtype, seed=tensor + 50)[0]
        squares = torch.full((-(-mask.numel() // TILE),), torch.nan, device=DEVICE)
        out = wagle_kernels.compress(
            place(dense), ours, tensor, place(before), accumulate=accumulate, squares=squares, backend="triton"
        )
        expected = wagle_kernels.compress(dense, theirs, tensor, before, accumulate=accumulate, backend="reference")
        assert torch.equal(bits_of(out), bits_of(expected))
        norm = expected.double().square().sum()
        torch.testing.assert_close(squares.cpu().double().sum(), norm, rtol=1e-5, atol=0)
        wagle_kernels.compress(place(dense), ours, tensor, place(before), backend="triton")  # without squares


@pytest.mark.parametrize(("dtype", "out_dtype", "accumulate"), DTYPE_PAIRS)
@pytest.mark.parametrize("coding", CODINGS)
def test_compress_gives_the_bits_of_the_specification(coding, dtype, out_dtype, accumulate):
    for density in (0.0, 0.03, 1.0):
        assert_same_compression(density, coding, dtype, out_dtype, accumulate)


@pytest.mark.parametrize("coding", CODINGS)
def test_compress_takes_views_at_any_address(coding):
    assert_same_compression(0.5, coding, torch.bfloat16, torch.float32, True, misaligned)


def test_compress_in_steps_as_launched_gives_the_bits_of_the_specification(as_launched):
    assert_same_compression(0.5, "bits", torch.bfloat16, torch.float32, True)


def assert_same_scattering(density, coding, dtype, place=aligned):
    masks = masks_of(density)
    ours, theirs = (make_layout(masks, indexed=coding == "indices", device=d) for d in (DEVICE, "cpu"))
    for tensor, mask in enumerate(masks):
        dense, compact = random_patterns(mask.numel(), dtype), tensors(int(mask.sum()), dtype)[0]
        target = place(dense)
        assert wagle_kernels.scatter(target, ours, tensor, place(compact), backend="triton") is target
        wagle_kernels.scatter(dense, theirs, tensor, compact, backend="reference")
        assert torch.equal(bits_of(target.clone()), bits_of(dense))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("coding", CODINGS)
def test_scatter_gives_the_bits_of_the_specification(coding, density, dtype):
    assert_same_scattering(density, coding, dtype)


@pytest.mark.parametrize("coding", CODINGS)
def test_scatter_takes_views_at_any_address(coding):
    assert_same_scattering(0.5, coding, torch.bfloat16, misaligned)


def test_scatter_in_steps_as_launched_gives_the_bits_of_the_specification(as_launched):
    assert_same_scattering(0.5, "bits", torch.bfloat16)


# Accumulation


def assert_not_worse(ours, theirs, exact, tolerance):
    """Our error against fp64 is at most that of the specification, plus a tolerance."""
    ours, theirs = ((x.cpu().double() - exact).abs() for x in (ours, theirs))
    excess = ours - theirs - tolerance
    assert not (excess > 0).any(), f"{int((excess > 0).sum())} of {excess.numel()}, by up to {excess.max()}"


@pytest.mark.parametrize("numel", TILED_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_accumulate_is_not_worse_than_the_specification(dtype, numel):
    _, total, grad = tensors(numel, seed=numel)
    grad = grad.to(dtype)
    for squared in (False, True):
        before = total.abs() if squared else total
        exact = before.double() + (grad.double() ** 2 if squared else grad.double())
        theirs = wagle_kernels.accumulate(before.clone(), grad, squared=squared, backend="reference")
        for place in (aligned, misaligned):
            target = place(before)
            assert wagle_kernels.accumulate(target, place(grad), squared=squared, backend="triton") is target
            assert_not_worse(target, theirs, exact, 2.0**-24 * exact.abs())


# AdamW

OPTIONS = dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1, grad_scale=0.7)
WEIGHTS = {
    "fp32": (torch.float32, False),
    "bf16": (torch.bfloat16, False),
    "bf16 with remainder": (torch.bfloat16, True),
}


def groups_of_each(layout, masks):
    """Group of every compact element."""
    runs = wagle_kernels.reference.compaction.runs(layout, slice(0, layout.tiles[-1]))
    return torch.cat([run.group_of_each(run.positions()) for run in runs])


def assert_few_differ(ours, theirs):
    """Codes are a level apart at most, and that rarely."""
    levels = (ours.cpu().int() - theirs.int()).abs()
    assert levels.max() <= 1 and (levels > 0).sum() <= max(1e-3 * levels.numel(), 1)


def assert_steps_like_the_specification(
    masks, coding, dtype, split, state_bits, *, steps=3, grad_dtype=torch.float32, place=aligned
):
    layout = make_layout(masks, indexed=coding == "indices")
    device_layout = make_layout(masks, indexed=coding == "indices", device=DEVICE)
    weights = []
    for i, mask in enumerate(masks):  # any bits where nothing is selected
        weight = random_patterns(mask.numel(), dtype, seed=i)
        weight[mask] = tensors(int(mask.sum()), dtype, seed=i)[0]
        weights.append(weight)
    original = [weight.clone() for weight in weights]
    theirs = State.zeros(weights, layout, state_bits=state_bits, split=split)
    groups = groups_of_each(layout, masks)
    for step in range(1, steps + 1):
        _, grad, spread = tensors(layout.num_selected, seed=step)
        grad = (grad * torch.exp(2e3 * spread)).to(grad_dtype)
        m, v = theirs.moments(groups)
        exact = exact_adamw(theirs.masters(masks), grad, m, v, step=step, **OPTIONS)
        ours = theirs.map(place)  # both step from the same state, so that differences do not pile up
        ours.step(device_layout, grad.to(DEVICE), step=step, **OPTIONS, backend="triton")
        theirs.step(layout, grad, step=step, **OPTIONS)
        ours = ours.map(lambda x: x.cpu().clone())
        for weight, before, mask in zip(ours.weights, original, masks):
            assert torch.equal(bits_of(weight)[~mask], bits_of(before)[~mask])
        master, m_exact, v_exact = exact
        rounding = 1e-4 * OPTIONS["lr"] + 2.0**-23 * master.abs()
        assert_not_worse(ours.masters(masks), theirs.masters(masks), master, rounding)
        if state_bits == 32:
            assert_not_worse(ours.exp_avg, theirs.exp_avg, m_exact, 2.0**-22 * (m.abs() + grad.float().abs()))
            assert_not_worse(ours.exp_avg_sq, theirs.exp_avg_sq, v_exact, 2.0**-21 * v_exact)
        else:
            assert_few_differ(ours.exp_avg, theirs.exp_avg)
            assert_few_differ(ours.exp_avg_sq, theirs.exp_avg_sq)
            assert torch.equal(ours.exp_avg_exponent, theirs.exp_avg_exponent)
            assert torch.equal(ours.exp_avg_sq_exponent, theirs.exp_avg_sq_exponent)
    return theirs


@pytest.mark.parametrize("density", [0.03, 0.5, 1.0])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_is_not_worse_than_the_specification(coding, state_bits, weights, density):
    state = assert_steps_like_the_specification(masks_of(density), coding, *WEIGHTS[weights], state_bits)
    assert state.exp_avg.any() and state.exp_avg_sq.any()


@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_in_steps_as_launched_is_not_worse_than_the_specification(coding, state_bits, as_launched):
    assert_steps_like_the_specification(masks_of(0.3), coding, torch.bfloat16, True, state_bits, steps=1)


@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_takes_bf16_gradients_and_views_at_any_address(coding, state_bits):
    masks = masks_of(0.3, [TILE + 8, 1001])
    options = dict(grad_dtype=torch.bfloat16, place=misaligned)
    assert_steps_like_the_specification(masks, coding, torch.bfloat16, True, state_bits, **options)


@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_on_whole_rows_keeps_the_bits_between_the_selected(coding, state_bits):
    masks = masks_of(0.03, [TILE, 64, 1000])  # all divisible by eight: rows are written whole
    assert_steps_like_the_specification(masks, coding, torch.bfloat16, True, state_bits)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_rounds_halves_as_the_specification_does(coding, split):
    weight = (1 + torch.arange(128) / 128).to(torch.bfloat16)  # every mantissa
    weight = torch.cat([weight, -weight])
    layouts = [
        make_layout([torch.ones(256, dtype=torch.bool)], indexed=coding == "indices", device=device)
        for device in ("cpu", DEVICE)
    ]
    theirs = State.zeros([weight.clone()], layouts[0], split=split)
    theirs.exp_avg[:] = -weight.float().sign() * 2 * 2.0**-8  # an update of half the distance to the next bf16
    ours, grad = theirs.map(aligned), torch.zeros(256)
    options = dict(step=100, lr=1.0, beta1=0.5, beta2=0.5, eps=1.0, weight_decay=0.0)
    theirs.step(layouts[0], grad, **options)
    ours.step(layouts[1], grad.to(DEVICE), **options, backend="triton")
    halves = weight.float() + weight.float().sign() * 2.0**-8
    assert torch.equal(theirs.weights[0], wagle_kernels.split(halves)[0] if split else halves.to(torch.bfloat16))
    assert torch.equal(ours.weights[0].cpu(), theirs.weights[0])
    assert not split or torch.equal(ours.remainder.cpu(), theirs.remainder)


@pytest.mark.parametrize("numels", [[0], [0, 0], [5, TILE, 9]], ids=str)
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_of_nothing_selected_changes_nothing(coding, numels):
    masks = [torch.zeros(numel, dtype=torch.bool) for numel in numels]
    layout = make_layout(masks, indexed=coding == "indices", device=DEVICE)
    original = [random_patterns(numel, torch.bfloat16) for numel in numels]
    state = State.zeros([weight.clone() for weight in original], layout, state_bits=8, split=True)
    state = state.map(lambda x: x.to(DEVICE))
    state.step(layout, torch.zeros(0, device=DEVICE), step=1, **OPTIONS, backend="triton")
    assert all(torch.equal(bits_of(a), bits_of(b)) for a, b in zip(state.weights, original))


@pytest.mark.parametrize("numel", TILED_SIZES[1:])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_takes_any_size(coding, numel):
    masks = [random_bits(numel, 0.6, seed=numel)]
    masks[0][0] = True
    assert_steps_like_the_specification(masks, coding, torch.bfloat16, True, 8, steps=1)


@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_of_its_own_state_stays_with_the_specification_over_many_steps(coding, state_bits):
    masks = [random_bits(300, 0.5)]
    layouts = [make_layout(masks, indexed=coding == "indices", device=device) for device in ("cpu", DEVICE)]
    weight = tensors(300, torch.bfloat16)[0]
    theirs = State.zeros([weight.clone()], layouts[0], state_bits=state_bits, split=True)
    ours = State.zeros([weight], layouts[0], state_bits=state_bits, split=True).map(lambda x: x.to(DEVICE))
    for step in range(1, 11):
        grad = tensors(layouts[0].num_selected, seed=step)[1]
        theirs.step(layouts[0], grad, step=step, **OPTIONS)
        ours.step(layouts[1], grad.to(DEVICE), step=step, **OPTIONS, backend="triton")
    off = (ours.map(lambda x: x.cpu()).masters(masks) - theirs.masters(masks)).abs()
    assert off.mean() < 1e-3 * OPTIONS["lr"] and off.max() < 0.5 * OPTIONS["lr"]


# Offsets beyond 32 bits

FAR = 2**32  # an offset of 32 bits would wrap to 0, where there is memory: the result is wrong, nothing crashes


def far(numel, dtype=torch.float32):
    """A tensor of zeros that takes memory only where it is written."""
    size = numel * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE, which Python 3.11 has no name for
    return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=dtype)


def far_copy(values):
    """A tensor that ends in `values`, after `FAR` zeros."""
    tensor = far(FAR + values.numel(), values.dtype)
    tensor[FAR:] = values
    return tensor


@pytest.fixture
def last_program(monkeypatch):
    """Run only the last program of every launch."""
    from triton.runtime import interpreter

    run = interpreter.GridExecutor.__call__

    def run_last(self, *args, **kwargs):
        last = self.grid[0] - 1
        monkeypatch.setattr(interpreter.interpreter_builder, "set_grid_idx", lambda x, y, z: None)
        monkeypatch.setattr(interpreter.interpreter_builder, "grid_idx", (last, 0, 0), raising=False)
        self.grid = (1,)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", run_last)


def far_layout(mask, coding):
    """Layout of one tensor that ends in `mask`, in its last tile, behind `FAR` others; and that of the end alone."""
    near = make_layout([mask], indexed=coding == "indices")
    tiles, selected = FAR // TILE + 1, near.num_selected
    groups = torch.full((tiles + 1,), FAR // 64)
    groups[-1] += near.groups[-1]
    starts = torch.full((tiles + 1,), FAR)
    starts[-1] += selected
    if coding == "indices":
        positions = dict(bits=None, indices=far_copy(near.indices))
    else:
        bits = far(tiles * TILE // 8, torch.uint8)
        bits[-TILE // 8 :] = near.bits
        groups = torch.arange(tiles + 1) * int(near.groups[-1])
        positions = dict(bits=bits, indices=None)
    layout = Layout(
        numels=(FAR + mask.numel(),),
        tiles=(0, tiles),
        offsets=(0, FAR + selected),
        starts=starts,
        groups=groups,
        owners=torch.zeros(tiles, dtype=torch.int32),
        first_tiles=torch.tensor([0, tiles], dtype=torch.int32),
        **positions,
    )
    return near, layout


def far_masks(numel):
    """Mask bits and counts of tiles for `FAR + numel` elements."""
    packed = far(FAR // 8 + (numel + 7) // 8, torch.uint8)
    return packed, torch.zeros(FAR // TILE + (numel + TILE - 1) // TILE, dtype=torch.int32)


@interpreter_only
@pytest.mark.parametrize("numel", [1000, 1001])
@pytest.mark.parametrize("formula", ["wagle", "random"])
def test_partitions_and_ties_reach_beyond_32_bits(formula, numel, last_program):
    inputs, spec = tensors(numel, torch.bfloat16), ScoreSpec(formula, scale=0.05)
    keys = np.sort(keys_of(inputs, spec, FAR))[::-1]
    low, high = int(keys[30]), int(keys[3])
    expected = partition(inputs, spec, low, high, capacity=100, numel=FAR + numel, offset=FAR)
    far_inputs = [far_copy(x) for x in inputs]
    packed, inside = far_masks(numel)
    candidates = wagle_kernels.Candidates.allocate(low, high, FAR + numel, 100, DEVICE)
    wagle_kernels.score_partition(packed, inside, candidates, *far_inputs, spec, backend="triton")
    result = Partition(packed[FAR // 8 :], inside[-1:], candidates)
    assert torch.equal(result.packed, expected.packed) and torch.equal(result.inside, expected.inside)
    assert result.counts == expected.counts and result.codes == expected.codes
    for name, mask in (("ours", packed), ("theirs", expected.packed)):
        tied = (far_inputs, inside, 0) if name == "ours" else (inputs, expected.inside, FAR)
        options = dict(key=low, ties=1, offset=tied[2], backend="triton" if name == "ours" else "reference")
        wagle_kernels.add_ties(mask, tied[1], *tied[0], spec, **options)
    assert wagle_kernels.popcount(expected.packed) == 4
    assert torch.equal(packed[FAR // 8 :], expected.packed)
    assert not packed[: numel // 8].any()  # where a short offset would lead


@interpreter_only
@pytest.mark.parametrize("numel", [1000, 1001])
def test_histograms_reach_beyond_32_bits(numel, last_program):
    inputs = tensors(numel, torch.bfloat16)
    ours, theirs = (torch.zeros(256, dtype=torch.int64) for _ in range(2))
    far_inputs = [far_copy(x) for x in inputs]
    wagle_kernels.score_histogram(ours, *far_inputs, SPEC, shift=24, backend="triton")
    wagle_kernels.score_histogram(theirs, *inputs, SPEC, shift=24, backend="reference")
    assert torch.equal(ours, theirs)


@interpreter_only
@pytest.mark.parametrize("numel", [1000, 1001])
@pytest.mark.parametrize("squared", [False, True])
def test_accumulation_reaches_beyond_32_bits(squared, numel, last_program):
    grad, total, _ = tensors(numel)
    far_total = far_copy(total)
    wagle_kernels.accumulate(far_total, far_copy(grad.bfloat16()), squared=squared, backend="triton")
    wagle_kernels.accumulate(total, grad.bfloat16(), squared=squared, backend="reference")
    torch.testing.assert_close(far_total[FAR:], total, rtol=1e-6, atol=0)
    assert not far_total[:numel].any()


@interpreter_only
@pytest.mark.parametrize("numel", [1000, 1001])
def test_packing_reaches_beyond_32_bits(numel, last_program):
    bits = random_bits(numel)
    packed, _ = far_masks(numel)
    wagle_kernels.pack(far_copy(bits), out=packed, backend="triton")
    assert torch.equal(packed[FAR // 8 :], wagle_kernels.pack(bits))
    assert not packed[: numel // 8].any()


@interpreter_only
@pytest.mark.parametrize("numel", [1000, 1001])
@pytest.mark.parametrize("coding", CODINGS)
def test_compress_and_scatter_reach_beyond_32_bits(coding, numel, last_program):
    mask, dense = random_bits(numel), tensors(numel, torch.bfloat16)[0]
    near, layout = far_layout(mask, coding)
    selected = near.num_selected
    out, squares = far(FAR + selected), torch.zeros(layout.tiles[-1])
    wagle_kernels.compress(far_copy(dense), layout, 0, out, squares=squares, backend="triton")
    assert torch.equal(out[FAR:], dense[mask].float())
    torch.testing.assert_close(squares[-1], out[FAR:].square().sum())
    assert not out[:numel].any()
    target = far(FAR + numel, torch.bfloat16)
    wagle_kernels.scatter(target, layout, 0, far_copy(dense[mask]), backend="triton")
    assert torch.equal(target[FAR:], torch.where(mask, dense, 0))
    assert not target[:numel].any()


@interpreter_only
@pytest.mark.parametrize("numel", [1000, 1001])
@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("coding", CODINGS)
def test_adamw_reaches_beyond_32_bits(coding, state_bits, numel, last_program):
    mask, weight = random_bits(numel), tensors(numel, torch.bfloat16)[0]
    near, layout = far_layout(mask, coding)
    expected = State.zeros([weight], near, state_bits=state_bits, split=True)
    expected.step(near, tensors(near.num_selected, seed=1)[1], step=1, **OPTIONS)
    state = expected.map(lambda x: x)
    if state_bits == 8:  # scales are far off by as many groups as there are before
        first = int(layout.groups[-2])
        for name in ("exp_avg_exponent", "exp_avg_sq_exponent"):
            scales = getattr(expected, name)
            setattr(state, name, far(first + scales.numel(), torch.uint8))
            getattr(state, name)[first:] = scales
    for name in ("exp_avg", "exp_avg_sq", "remainder"):
        setattr(state, name, far_copy(getattr(state, name)))
    state.weights = [far_copy(weight)]
    grad = tensors(near.num_selected, seed=2)[1]
    state.step(layout, far_copy(grad), step=2, **OPTIONS, backend="triton")
    expected.step(near, grad, step=2, **OPTIONS)
    state.weights, state.remainder = [state.weights[0][FAR:]], state.remainder[FAR:]
    off = (state.masters([mask]) - expected.masters([mask])).abs()
    assert off.max() < 1e-4 * OPTIONS["lr"] + 2.0**-22 * weight.abs().max()
    assert torch.equal(state.weights[0][~mask], weight[~mask])
    for name in ("exp_avg", "exp_avg_sq"):
        ours, theirs = getattr(state, name)[FAR:], getattr(expected, name)
        assert_few_differ(ours, theirs) if state_bits == 8 else torch.testing.assert_close(ours, theirs)
        assert not getattr(state, name)[:numel].any()
    if state_bits == 8:
        assert torch.equal(state.exp_avg_exponent[first:], expected.exp_avg_exponent)
        assert torch.equal(state.exp_avg_sq_exponent[first:], expected.exp_avg_sq_exponent)


needs_48_gb = pytest.mark.skipif(
    INTERPRETED or torch.cuda.get_device_properties(0).total_memory < 48e9, reason="needs a GPU with 48 GB"
)
LONG = 2**31 + 3 * TILE + 1001  # elements


@pytest.mark.gpu
@needs_48_gb
def test_tensors_of_more_than_2_to_31_elements_are_selected_like_their_halves():
    theta, spec, half = torch.zeros(LONG, dtype=torch.bfloat16, device=DEVICE), ScoreSpec("random", seed=1), 2**30
    key = int(torch.tensor(0.999).view(torch.int32))
    bracket = key, key + 100

    def cut(parts):
        candidates = wagle_kernels.Candidates.allocate(*bracket, LONG, 2**20, DEVICE)
        masks, offset = [], 0
        for part in parts:
            packed = torch.zeros((part.numel() + 7) // 8, dtype=torch.uint8, device=DEVICE)
            inside = torch.zeros((part.numel() + TILE - 1) // TILE, dtype=torch.int32, device=DEVICE)
            wagle_kernels.score_partition(packed, inside, candidates, part, None, None, spec, offset=offset)
            masks.append((packed, inside))
            offset += part.numel()
        codes = candidates.codes[: candidates.counts[1]].sort().values
        return *(torch.cat(column) for column in zip(*masks)), candidates.counts, codes

    for whole, halves in zip(cut([theta]), cut(theta.split(half))):
        assert torch.equal(whole, halves)


@pytest.mark.gpu
@needs_48_gb
@pytest.mark.parametrize("coding", CODINGS)
def test_more_than_2_to_31_selected_weights_are_updated_like_each_tile_alone(coding):
    packed = torch.full(((LONG + 7) // 8,), 0xFF, dtype=torch.uint8, device=DEVICE)
    packed[-1] = (1 << LONG % 8) - 1
    layout = Layout.of([packed], [LONG], indexed=coding == "indices")
    assert layout.num_selected == LONG
    generator = torch.Generator(DEVICE).manual_seed(0)
    weight = torch.empty(LONG, dtype=torch.bfloat16, device=DEVICE).normal_(generator=generator)
    dense = torch.empty(LONG, dtype=torch.bfloat16, device=DEVICE).normal_(generator=generator)
    ends = [slice(0, TILE), slice(2**31, 2**31 + TILE), slice(LONG - 1001, LONG)]
    starts = [weight[end].clone() for end in ends]
    grad = wagle_kernels.compress(dense, layout, 0, torch.empty_like(dense))
    assert torch.equal(grad, dense)
    moments = [torch.zeros(LONG, device=DEVICE) for _ in range(2)]
    remainder = torch.zeros(LONG, dtype=torch.int16, device=DEVICE)
    wagle_kernels.adamw([weight], layout, grad, *moments, remainder=remainder, step=1, **OPTIONS)
    for end, start in zip(ends, starts):
        alone = make_layout([torch.ones(start.numel(), dtype=torch.bool)], indexed=coding == "indices", device=DEVICE)
        state = State.zeros([start.cpu()], alone, split=True).map(lambda x: x.to(DEVICE))
        state.step(alone, dense[end].clone(), step=1, **OPTIONS)
        for ours, theirs in zip(
            (state.weights[0], state.remainder, state.exp_avg, state.exp_avg_sq), (weight, remainder, *moments)
        ):
            assert torch.equal(ours, theirs[end])
    wagle_kernels.scatter(weight, layout, 0, grad)
    assert torch.equal(weight, dense)
    wagle_kernels.accumulate(moments[0].zero_(), dense)
    assert torch.equal(moments[0][-1001:], dense[-1001:].float())
