import copy
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wagle_trl import SparseDelta, WeightMask
from wagle_trl.deltas.delta import weights_fingerprint
from wagle_trl.files.run_folder import DELTA_FILE

from ..support.deltas import same_weights, unlearned


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def base(request, tiny_model):
    return tiny_model(dtype=request.param)


@pytest.mark.parametrize("density", [0.0, 0.001, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "from its file"])
def test_apply_gives_the_unlearned_model_and_undo_the_base_bit_by_bit(density, stored, base, tmp_path):
    model, mask = unlearned(base, density)
    delta = SparseDelta.from_model(model, mask, weights_fingerprint(base), base)
    if stored:
        delta.save(tmp_path)
        delta = SparseDelta.load(tmp_path)
    made = delta.apply(copy.deepcopy(base))
    assert same_weights(made, model)
    assert density == 0.0 or not same_weights(made, base)
    assert same_weights(delta.undo(made), base)


def test_weights_that_differ_in_sign_of_zero_or_are_not_numbers_come_back_bit_by_bit():
    base = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        base.weight.copy_(torch.tensor([[0.0, 1.0, torch.inf, 2.0], [-0.0, 3.0, 4.0, 5.0]]))
    model = copy.deepcopy(base)
    with torch.no_grad():
        model.weight.view(-1)[:3] = torch.tensor([-0.0, torch.nan, -torch.inf])
    mask = WeightMask.from_dense({"weight": torch.arange(8).view(2, 4) < 3})
    delta = SparseDelta.from_model(model, mask, weights_fingerprint(base), base)
    made = delta.apply(copy.deepcopy(base))
    assert same_weights(made, model)
    assert same_weights(delta.undo(made), base)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_a_file_gives_back_mask_and_values_of_any_shape(shape, density, seed, dtype, tmp_path_factory):
    generator = torch.Generator().manual_seed(seed)
    mask = WeightMask.from_dense({"w": torch.rand(shape, generator=generator) < density})
    new = {"w": torch.randn(mask.num_selected, generator=generator).to(dtype)}
    delta = SparseDelta(mask, new, {"w": dtype, "v": torch.float32}, "0123456789abcdef")
    loaded = SparseDelta.load(delta.save(tmp_path_factory.mktemp("delta")))
    assert loaded.mask == mask
    assert torch.equal(loaded.new["w"], new["w"])
    assert (loaded.dtypes, loaded.base_fingerprint, loaded.old) == (delta.dtypes, delta.base_fingerprint, None)


def test_at_density_005_a_delta_takes_at_most_015_of_the_bf16_model(tiny_model, tmp_path):
    base = tiny_model(dtype=torch.bfloat16, hidden_size=256, intermediate_size=512)
    model, mask = unlearned(base)
    size = 2 * sum(parameter.numel() for parameter in base.parameters())
    plain = SparseDelta.from_model(model, mask, weights_fingerprint(base))
    undoable = SparseDelta.from_model(model, mask, weights_fingerprint(base), base)
    assert os.path.getsize(plain.save(tmp_path / "plain")) <= 0.085 * size  # 0.05 of values, 0.025 of positions
    assert os.path.getsize(undoable.save(tmp_path / "undoable")) <= 0.15 * size


def test_a_delta_without_old_values_says_what_to_load_instead(base):
    model, mask = unlearned(base)
    delta = SparseDelta.from_model(model, mask, weights_fingerprint(base))
    with pytest.raises(ValueError, match="no old values; load the base model 'user/base' instead"):
        delta.undo(model)


def test_another_base_is_refused_and_left_alone(base, tiny_model):
    model, mask = unlearned(base)
    delta = SparseDelta.from_model(model, mask, weights_fingerprint(base), base)
    other = tiny_model(seed=1, dtype=base.dtype)
    before = copy.deepcopy(other)
    with pytest.raises(ValueError, match="for another base: 'user/base' with fingerprint"):
        delta.apply(other)
    with pytest.raises(ValueError, match="does not hold the values of this delta"):
        delta.undo(other)
    with pytest.raises(ValueError, match="does not hold the values of this delta"):
        delta.undo(base)
    assert same_weights(other, before)


def test_a_base_that_differs_outside_the_mask_is_refused(base):
    names = [name for name, _ in base.named_parameters() if "layers" in name]
    model, mask = unlearned(base, names=names)
    delta = SparseDelta.from_model(model, mask, weights_fingerprint(base))
    with torch.no_grad():
        base.get_input_embeddings().weight.add_(1.0)
    with pytest.raises(ValueError, match="for another base"):
        delta.apply(base)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 64}, "for another model: 'model.layers.0.self_attn.q_proj.weight' has shape"),
        (
            {"num_hidden_layers": 1},
            "model.layers.1.input_layernorm.weight, .* and 6 more missing",
        ),
    ],
    ids=["shape", "layers"],
)
def test_another_architecture_is_refused(config, message, tiny_model):
    base = tiny_model()
    names = [name for name, _ in base.named_parameters() if "q_proj" in name]
    model, mask = unlearned(base, names=names)
    delta = SparseDelta.from_model(model, mask, weights_fingerprint(base))
    with pytest.raises(ValueError, match=message):
        delta.apply(tiny_model(**config))


def test_a_base_in_another_dtype_is_refused(tiny_model):
    base = tiny_model(dtype=torch.bfloat16)
    model, mask = unlearned(base)
    delta = SparseDelta.from_model(model, mask, weights_fingerprint(base))
    with pytest.raises(
        ValueError, match=r"is torch\.float32, but torch\.bfloat16 in the delta; load the model in torch\.bfloat16"
    ):
        delta.apply(tiny_model())


def test_tied_weights_are_changed_once(tiny_model):
    base = tiny_model(tie_word_embeddings=True)
    assert base.lm_head.weight is base.model.embed_tokens.weight
    model, mask = unlearned(base)
    delta = SparseDelta.from_model(model, mask, weights_fingerprint(base), base)
    made = delta.apply(copy.deepcopy(base))
    assert torch.equal(made.lm_head.weight, model.lm_head.weight)
    assert made.lm_head.weight is made.model.embed_tokens.weight


def test_a_loaded_delta_stays_what_it_was_when_another_takes_its_place(base, tmp_path):
    (first, first_mask), (second, second_mask) = unlearned(base, seed=0), unlearned(base, seed=1)
    SparseDelta.from_model(first, first_mask, weights_fingerprint(base)).save(tmp_path)
    delta = SparseDelta.load(tmp_path)
    SparseDelta.from_model(second, second_mask, weights_fingerprint(base)).save(tmp_path)
    assert same_weights(delta.apply(copy.deepcopy(base)), first)


def test_a_loaded_delta_reads_its_values_when_they_are_asked_for(base, tmp_path):
    model, mask = unlearned(base)
    path = SparseDelta.from_model(model, mask, weights_fingerprint(base)).save(tmp_path)
    delta = SparseDelta.load(path)
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(ValueError, match="it was truncated while it was read"):
        [delta.new[name] for name in delta.new]


def test_a_loaded_delta_is_saved_as_it_was(base, tmp_path):
    model, mask = unlearned(base)
    path = SparseDelta.from_model(model, mask, weights_fingerprint(base), base).save(tmp_path / "first")
    again = SparseDelta.load(path).save(tmp_path / "second")
    assert again.read_bytes() == path.read_bytes()


def test_a_model_in_wider_weights_is_no_base(tiny_model):
    base = tiny_model()
    model, mask = unlearned(base)
    delta = SparseDelta.from_model(model, mask, weights_fingerprint(base))
    with pytest.raises(ValueError, match="for another base"):
        delta.apply(copy.deepcopy(base).bfloat16().float())  # rounded on the way
    assert same_weights(delta.apply(base), model)


def test_a_delta_knows_where_it_comes_from(base, tmp_path):
    model, mask = unlearned(base)
    delta = SparseDelta.load(SparseDelta.from_model(model, mask, weights_fingerprint(base)).save(tmp_path))
    assert (delta.base_model, delta.base_revision) == ("user/base", "main")
    assert delta.mask.info == mask.info
    assert delta.dtype == base.dtype
    assert delta.num_selected == mask.num_selected
    assert repr(delta) == f"SparseDelta({mask.num_selected:,} of {mask.numel:,} weights of 'user/base')"


def test_a_folder_without_a_delta_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"No delta at .*{DELTA_FILE}; give a {DELTA_FILE} or a folder"):
        SparseDelta.load(tmp_path)
