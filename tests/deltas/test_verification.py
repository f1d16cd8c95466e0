import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from wagle_trl import WeightMask
from wagle_trl.deltas import verification
from wagle_trl.deltas.verification import dtype_name, verify
from wagle_trl.files.checkpoint import Checkpoint
from wagle_trl.files.tensor_file import DTYPES


@pytest.fixture
def pair(tmp_path):
    """`pair(before, after)`: the checkpoints of two sets of tensors."""

    def build(before, after):
        for name, tensors in (("base", before), ("unlearned", after)):
            (tmp_path / name).mkdir(exist_ok=True)
            save_file(tensors, tmp_path / name / "model.safetensors")
        return Checkpoint(tmp_path / "base"), Checkpoint(tmp_path / "unlearned")

    return build


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.embed.weight": (7, 3), "model.layers.0.up.weight": (5, 9), "model.layers.10.up.weight": (4, 4)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


UP = "model.layers.0.up.weight"


def mask_of(*flat, name=UP, shape=(5, 9)):
    selected = torch.zeros(shape, dtype=torch.bool)
    selected.view(-1)[list(flat)] = True
    return WeightMask.from_dense({name: selected})


def test_a_model_that_moved_within_its_mask_is_verified_with_counts_and_sizes(pair):
    before, after = weights(), weights()
    after[UP].view(-1)[3] += 0.5
    after[UP].view(-1)[44] -= 1.5
    result = verify(*pair(before, after), mask_of(3, 4, 44), progress=False)
    assert result.passed and not result.violations
    assert list(result.layers) == ["-", "0", "10"]
    total = result.total.to_dict()
    assert (total["numel"], total["selected"], total["moved"], total["outside"], total["non_finite"]) == (
        82,
        3,
        2,
        0,
        0,
    )
    assert total["mean_change"] == pytest.approx(1.0) and total["max_change"] == pytest.approx(1.5)
    assert result.layers["0"].to_dict() == total | {"numel": 45}
    assert result.layers["10"].to_dict() == {
        "numel": 16,
        "selected": 0,
        "moved": 0,
        "outside": 0,
        "non_finite": 0,
        "mean_change": 0.0,
        "max_change": 0.0,
    }


@pytest.mark.parametrize("name", weights())
def test_one_bit_outside_the_mask_is_found_in_any_tensor(name, pair):
    before, after = weights(), weights()
    bits = after[name].view(-1).view(torch.int32)
    bits[7] ^= 1
    result = verify(*pair(before, after), mask_of(3), progress=False)
    assert result.violations == {name: 1}
    assert result.total.outside == 1 and result.total.moved == 0


def test_bits_count_not_numbers(pair):
    before, after = weights(), weights()
    before[UP][0, :3] = torch.tensor([0.0, torch.nan, torch.inf])
    after[UP][0, :3] = torch.tensor([-0.0, torch.nan, torch.inf])
    result = verify(*pair(before, after), mask_of(1, 2), progress=False)
    assert result.violations == {UP: 1}


def test_nan_and_infinity_are_counted_and_spoil_no_other_number(pair):
    before, after = weights(), weights()
    before[UP][0, :2] = after[UP][0, :2] = torch.tensor([torch.nan, -torch.inf])
    after[UP].view(-1)[3:7] = torch.tensor([torch.nan, torch.inf, -torch.inf, 7.0])
    before[UP].view(-1)[6] = 5.0
    result = verify(*pair(before, after), mask_of(0, 1, 3, 4, 5, 6), progress=False)
    total = result.total.to_dict()
    assert (total["moved"], total["non_finite"], result.layers["10"].non_finite) == (4, 5, 0)
    assert (total["mean_change"], total["max_change"]) == (2.0, 2.0)
    assert result.passed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_nan_is_counted_in_every_dtype(dtype, pair):
    before, after = weights(dtype), weights(dtype)
    after[UP][0, 3] = torch.nan
    result = verify(*pair(before, after), mask_of(3), progress=False)
    assert (result.total.non_finite, result.total.moved, result.total.max_change) == (1, 1, 0.0)


def test_differences_of_wide_weights_are_not_rounded(pair):
    before, after = weights(torch.float64), weights(torch.float64)
    before[UP][0, 3], after[UP][0, 3] = 1.0, 1.0 + 2**-40
    assert verify(*pair(before, after), mask_of(3), progress=False).total.max_change == 2**-40


# What holds every number of another dtype, worked out by hand: 8-bit floats are E4M3 (no infinity) and E5M2
HOLDS = {
    "F64": {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"},
    "F32": {"F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"},
    "F16": {"F16", "F8_E4M3", "F8_E5M2"},
    "BF16": {"BF16", "F8_E4M3", "F8_E5M2"},
    "F8_E4M3": {"F8_E4M3"},
    "F8_E5M2": {"F8_E5M2"},
    "I64": {"I64", "I32", "I16", "I8", "U8", "BOOL"},
    "I32": {"I32", "I16", "I8", "U8", "BOOL"},
    "I16": {"I16", "I8", "U8", "BOOL"},
    "I8": {"I8", "BOOL"},
    "U8": {"U8", "BOOL"},
    "BOOL": {"BOOL"},
}
PAIRS = pytest.mark.parametrize(("before", "after"), [(before, after) for before in DTYPES for after in DTYPES])


@PAIRS
def test_a_model_is_verified_in_no_dtype_but_its_own_or_one_that_holds_all_its_numbers(before, after, pair):
    old = {name: (100 * values).to(DTYPES[before]) for name, values in weights().items()}
    new = {name: values.to(DTYPES[after]) for name, values in old.items()}
    result = verify(*pair(old, new), mask_of(3), progress=False)
    assert result.passed == (before in HOLDS[after])
    names = dtype_name(DTYPES[before]), dtype_name(DTYPES[after])
    assert result.narrowed == ({} if result.passed else dict.fromkeys(old, names))


@PAIRS
def test_weights_cast_to_any_dtype_pass_only_where_nothing_else_differs(before, after, pair):
    old = {name: (100 * values).to(DTYPES[before]) for name, values in weights().items()}
    new = {name: values.to(DTYPES[after], copy=True) for name, values in old.items()}
    one = new[UP].view(-1)
    one[7] = ~one[7] if after == "BOOL" else one[7].to(torch.float64) * -2 + 8
    assert not verify(*pair(old, new), mask_of(3), progress=False).passed


def test_numbers_that_a_narrower_dtype_happens_to_hold_are_a_rounded_model_all_the_same(pair):
    old = {name: values.bfloat16().float() for name, values in weights().items()}
    new = {name: values.bfloat16() for name, values in old.items()}
    result = verify(*pair(old, new), mask_of(3), progress=False)
    assert not result.violations and not result.passed
    assert result.narrowed[UP] == ("float32", "bfloat16")


CONFIGS = {
    "its own dtype": ({"dtype": "float32"}, True),
    "under the old name": ({"torch_dtype": "torch.float32"}, True),
    "none": ({}, True),
    "another one": ({"dtype": "float16"}, False),
    "another one under the old name": ({"torch_dtype": "bfloat16"}, False),
    "two": ({"dtype": "float32", "torch_dtype": "float16"}, False),
    "another one within": ({"dtype": "float32", "text_config": {"dtype": "bfloat16"}}, False),
    "a wider one": ({"dtype": "float64"}, False),
    "no dtype": ({"dtype": 5}, False),
}


@pytest.mark.parametrize(("config", "passes"), CONFIGS.values(), ids=CONFIGS)
def test_the_config_declares_the_dtype_of_the_files(config, passes, pair):
    base, unlearned = pair(weights(), weights())
    (base.folder / "config.json").write_text('{"dtype": "float32"}')
    (unlearned.folder / "config.json").write_text(json.dumps(config))
    result = verify(*map(Checkpoint, (base.folder, unlearned.folder)), mask_of(3), progress=False)
    assert (result.passed, not result.loaded_as) == (passes, passes)


SWAPPED = {"dtype": "float32", "extra": {"dtype": "float16"}}, {"dtype": "float16", "extra": {"dtype": "float32"}}


def test_it_matters_where_a_config_declares_a_dtype(pair):
    folders = [checkpoint.folder for checkpoint in pair(weights(), weights())]
    for folder, config in zip(folders, SWAPPED):
        (folder / "config.json").write_text(json.dumps(config))
    assert verify(*map(Checkpoint, folders), mask_of(3), progress=False).loaded_as.keys() == weights().keys()


def test_where_no_dtype_is_declared_all_weights_are_of_one(pair):
    mixed = weights() | {UP: weights()[UP].bfloat16()}
    folders = [checkpoint.folder for checkpoint in pair(mixed, mixed)]
    assert verify(*map(Checkpoint, folders), mask_of(3), progress=False).passed  # both are loaded alike
    (folders[0] / "config.json").write_text('{"dtype": "float32"}')
    assert not verify(*map(Checkpoint, folders), mask_of(3), progress=False).passed


def test_an_index_declares_a_dtype_too(pair):
    base, unlearned = pair(weights(), weights())
    (unlearned.folder / "model.safetensors").rename(unlearned.folder / "model-00001-of-00001.safetensors")
    places = dict.fromkeys(weights(), "model-00001-of-00001.safetensors")
    for declared, passes in (({}, True), ({"dtype": "float32"}, True), ({"dtype": "float16"}, False)):
        index = {"metadata": declared, "weight_map": places}
        (unlearned.folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert verify(base, Checkpoint(unlearned.folder), mask_of(3), progress=False).passed == passes


def test_norms_kept_in_another_dtype_than_the_config_declares_pass_where_the_base_is_loaded_alike(pair):
    mixed = weights(torch.bfloat16) | {"model.norm.weight": torch.ones(3)}
    base, unlearned = pair(mixed, mixed)
    for folder in (base.folder, unlearned.folder):
        (folder / "config.json").write_text('{"dtype": "bfloat16"}')
    assert verify(*map(Checkpoint, (base.folder, unlearned.folder)), mask_of(3), progress=False).passed
    (base.folder / "config.json").write_text('{"dtype": "float32"}')
    result = verify(*map(Checkpoint, (base.folder, unlearned.folder)), mask_of(3), progress=False)
    assert result.loaded_as == {"model.norm.weight": ("float32", "bfloat16")}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    numel=st.integers(0, 300),
    piece=st.sampled_from([8, 64, 1024]),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_counts_are_those_of_dense_tensors_whatever_the_pieces(numel, piece, seed, dtype, tmp_path_factory):
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(numel, generator=generator).to(dtype)
    selected, moved = (torch.rand(numel, generator=generator) < share for share in (0.5, 0.3))
    after = torch.where(moved, before + 1, before)
    folders = [tmp_path_factory.mktemp(name) for name in ("base", "unlearned")]
    for folder, tensor in zip(folders, (before, after)):
        save_file({"w": tensor}, folder / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "PIECE", piece)
        result = verify(*map(Checkpoint, folders), WeightMask.from_dense({"w": selected}), progress=False)
    assert result.total.moved == int((selected & moved).sum())
    assert result.total.outside == int((~selected & moved).sum())
    assert result.total.selected == int(selected.sum())
    change = (after.double() - before.double()).abs()
    assert result.total.total_change == pytest.approx(float(change.double().sum()))
    assert result.total.max_change == (float(change.max()) if numel else 0.0)


@pytest.mark.parametrize(
    ("after", "mask", "message"),
    [
        (weights() | {"extra": torch.ones(1)}, mask_of(3), "have different tensors, such as extra"),
        (
            weights() | {UP: torch.ones(9, 5)},
            mask_of(3),
            r"has shape \(5, 9\) in .*base' and \(9, 5\) in .*unlearned'",
        ),
        (weights(), mask_of(3, name="other"), "mask is for another model: .*unlearned' lacks other"),
        (
            weights(),
            mask_of(3, shape=(9, 5)),
            r"mask is for another model: .* has shape \(5, 9\) .* and \(9, 5\) in the",
        ),
    ],
    ids=["tensors", "shape", "mask name", "mask shape"],
)
def test_models_and_masks_that_do_not_belong_together_are_refused(after, mask, message, pair):
    with pytest.raises(ValueError, match=message):
        verify(*pair(weights(), after), mask, progress=False)
