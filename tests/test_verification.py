import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from wagle_trl import WeightMask, verification
from wagle_trl.checkpoint import Checkpoint
from wagle_trl.verification import verify


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
    assert not result.violations and result.rounded is None
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


@pytest.mark.parametrize(
    ("before", "after", "rounded"),
    [
        (torch.bfloat16, torch.float32, None),
        (torch.float16, torch.float64, None),
        (torch.float8_e4m3fn, torch.bfloat16, None),
        (torch.float16, torch.bfloat16, "bfloat16"),
        (torch.bfloat16, torch.float16, "float16"),
        (torch.float64, torch.float32, "float32"),
    ],
)
def test_weights_are_called_rounded_where_the_dtype_cannot_hold_them(before, after, rounded, pair):
    result = verify(
        *pair(weights(before), {name: w.to(after) for name, w in weights(before).items()}), mask_of(3), progress=False
    )
    assert result.passed and result.rounded == rounded


def test_a_wider_base_is_rounded_to_the_dtype_after(pair):
    result = verify(*pair(weights(), weights(torch.bfloat16)), mask_of(3), progress=False)
    assert not result.violations and result.total.moved == 0
    assert result.rounded == "bfloat16"


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
    change = (after.float() - before.float()).abs()
    assert result.total.total_change == pytest.approx(float(change.sum()))
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
