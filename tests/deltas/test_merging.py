import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wagle_trl import SparseDelta, WeightMask
from wagle_trl.deltas.delta import weights_fingerprint
from wagle_trl.deltas.merging import merge_deltas
from wagle_trl.files.tensor_file import bit_patterns
from wagle_trl.masks.info import MaskInfo

SHAPE = (6, 9)


def delta_of(selected, values, dtype=torch.float32, fingerprint="base", old=None):
    """Delta of one matrix: boolean mask and dense values."""
    mask = WeightMask.from_dense({"w": selected}, MaskInfo(score="random", base_model="user/base"))
    return SparseDelta(
        mask,
        {"w": values[selected].to(dtype)},
        {"w": dtype, "v": dtype},
        fingerprint,
        None if old is None else {"w": old[selected].to(dtype)},
    )


def random_delta(seed, density=0.3, **options):
    generator = torch.Generator().manual_seed(seed)
    selected = torch.rand(SHAPE, generator=generator) < density
    return delta_of(selected, torch.randn(SHAPE, generator=generator), **options)


def dense(delta, start):
    """The matrix that a delta makes of `start`."""
    out = start.clone().to(delta.dtypes["w"])
    out[delta.mask.dense("w")] = delta.new["w"]
    return out


START = torch.zeros(SHAPE)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seeds=st.lists(st.integers(0, 2**16), min_size=1, max_size=4, unique=True), density=st.floats(0, 1))
def test_by_default_the_last_delta_wins_as_if_they_were_applied_in_turn(seeds, density):
    deltas = [random_delta(seed, density) for seed in seeds]
    expected = START
    for delta in deltas:
        expected = dense(delta, expected)
    merged = merge_deltas(deltas).delta
    assert torch.equal(dense(merged, START), expected)
    assert merged.num_selected == int(torch.stack([d.mask.dense("w") for d in deltas]).any(0).sum())


def test_disjoint_deltas_merge_to_one_whatever_their_order_and_weights():
    selected = torch.rand(SHAPE) < 0.5
    values = torch.randn(SHAPE)
    first, second = delta_of(selected, values), delta_of(~selected, values)
    for merged in (
        merge_deltas([first, second]),
        merge_deltas([second, first]),
        merge_deltas([first, second], [3, 0.1]),
    ):
        assert torch.equal(dense(merged.delta, START), values)
        assert (merged.shared, merged.conflicts) == ({"w": 0}, {"w": 0})


def test_weighted_conflicts_become_the_weighted_mean_and_nothing_else_changes():
    a, b, c = (random_delta(seed, 0.6) for seed in range(3))
    weights = [1.0, 2.0, 0.5]
    merged = merge_deltas([a, b, c], weights)
    masks = torch.stack([delta.mask.dense("w") for delta in (a, b, c)])
    values = torch.stack([dense(delta, START) for delta in (a, b, c)]).double()
    share = masks * torch.tensor(weights).double().view(-1, 1, 1)
    mean = ((values * share).sum(0) / share.sum(0)).float()
    alone = masks.sum(0) == 1
    result = dense(merged.delta, START)
    assert torch.equal(result[alone], values.sum(0).float()[alone])
    torch.testing.assert_close(result[masks.sum(0) > 1], mean[masks.sum(0) > 1], rtol=1e-6, atol=0)
    assert merged.conflicts["w"] == merged.shared["w"] == int((masks.sum(0) > 1).sum())


def test_weights_that_deltas_agree_on_are_shared_and_no_conflict():
    values = torch.randn(SHAPE)
    everywhere = torch.ones(SHAPE, dtype=torch.bool)
    other = values.clone()
    other[0, :4] += 1
    merged = merge_deltas([delta_of(everywhere, values), delta_of(everywhere, other)], [0.3, 0.7])
    assert merged.shared == {"w": values.numel()}
    assert merged.conflicts == {"w": 4}
    assert torch.equal(dense(merged.delta, START)[1:], values[1:])  # not even rounded


def test_zeros_of_both_signs_conflict_and_not_a_number_agrees_with_itself():
    everywhere = torch.ones(SHAPE, dtype=torch.bool)
    values, other = torch.zeros(SHAPE), torch.zeros(SHAPE)
    values[0, 0], other[0, 0] = torch.nan, torch.nan
    other[0, 1] = -0.0
    merged = merge_deltas([delta_of(everywhere, values), delta_of(everywhere, other)])
    assert merged.conflicts == {"w": 1}
    assert torch.equal(bit_patterns(merged.delta.new["w"]), bit_patterns(other.view(-1)))


def test_old_values_are_merged_where_all_deltas_have_them():
    start = torch.randn(SHAPE)
    a, b = random_delta(0, old=start), random_delta(1, old=start)
    merged = merge_deltas([a, b]).delta
    assert torch.equal(merged.old["w"], start[merged.mask.dense("w")])
    assert merge_deltas([a, random_delta(1)]).delta.old is None


def test_deltas_of_different_scopes_merge_in_model_order():
    mask = WeightMask.from_dense({"v": torch.ones(3, dtype=torch.bool)})
    small = SparseDelta(mask, {"v": torch.arange(3.0)}, {"w": torch.float32, "v": torch.float32}, "base")
    merged = merge_deltas([small, random_delta(0)]).delta
    assert list(merged.mask.bits) == ["w", "v"]
    assert torch.equal(merged.new["v"], torch.arange(3.0))


def test_a_merged_mask_says_what_it_was_merged_from():
    first, second = random_delta(0), random_delta(1)
    info = merge_deltas([first, second]).delta.mask.info
    assert info.base_model == "user/base"
    assert (info.score, info.merged) == (
        "merged",
        f"{first.num_selected} by random, {second.num_selected} by random",
    )


def test_a_request_is_revoked_by_merging_the_others_again(tiny_model, tmp_path):
    base = tiny_model(dtype=torch.bfloat16)
    deltas = []
    for seed in range(3):
        model, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
        masks = {name: torch.rand(p.shape, generator=generator) < 0.1 for name, p in base.named_parameters()}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter[masks[name]] += 1
        delta = SparseDelta.from_model(model, WeightMask.from_dense(masks), weights_fingerprint(base), base)
        delta.save(tmp_path / str(seed))
        deltas.append(SparseDelta.load(tmp_path / str(seed)))
    everything, without = merge_deltas(deltas).delta, merge_deltas([deltas[0], deltas[2]]).delta
    served = everything.apply(copy.deepcopy(base))
    revoked = without.apply(everything.undo(served))
    expected = without.apply(copy.deepcopy(base))
    for (name, weights), other in zip(revoked.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(weights, other), name
        only = deltas[1].mask.dense(name) & ~without.mask.dense(name)
        assert torch.equal(weights[only], base.get_parameter(name)[only])


def test_mask_picture_and_delta_appear_together(tmp_path, monkeypatch):
    merged = merge_deltas([random_delta(seed) for seed in range(2)])
    folder = merged.save(tmp_path / "merged")
    assert sorted(path.name for path in folder.iterdir()) == [
        "wagle_delta.safetensors",
        "wagle_mask.png",
        "wagle_mask.safetensors",
    ]
    assert SparseDelta.load(folder).mask == WeightMask.load(folder) == merged.delta.mask
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        merged.save(folder)
    monkeypatch.setattr(SparseDelta, "save", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merged.save(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize(
    ("deltas", "weights", "message"),
    [
        ([], None, "No deltas to merge"),
        (
            [random_delta(0), random_delta(1, fingerprint="other")],
            None,
            r"Delta 2 is of another base \('user/base', 'other'\)",
        ),
        ([random_delta(0), random_delta(1, dtype=torch.bfloat16)], None, "Delta 2 has weights in other dtypes"),
        ([random_delta(0), random_delta(1)], [1.0], "2 deltas need 2 weights, got 1"),
        ([random_delta(0), random_delta(1)], [1.0, 0.0], r"must be positive and finite, got \[1.0, 0.0\]"),
        ([random_delta(0), random_delta(1)], [1.0, float("inf")], "must be positive and finite"),
        ([random_delta(0), random_delta(1)], [1.0, float("nan")], "must be positive and finite"),
    ],
    ids=["none", "base", "dtype", "count", "zero", "infinite", "nan"],
)
def test_what_cannot_be_merged_is_said(deltas, weights, message):
    with pytest.raises(ValueError, match=message):
        merge_deltas(deltas, weights)
