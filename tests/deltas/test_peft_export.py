import copy
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from wagle_trl import SparseDelta, WeightMask
from wagle_trl.deltas.delta import weights_fingerprint
from wagle_trl.deltas.peft_export import export_adapter
from wagle_trl.files.checkpoint import Checkpoint
from wagle_trl.files.tensor_file import bit_patterns

from ..support.deltas import same_weights, unlearned

IDS = torch.arange(60).view(2, 30)
UP = "model.layers.0.mlp.up_proj"
FILES = {"adapter_config.json", "adapter_model.safetensors"}


def linear(model):
    return [name for name, _ in model.named_parameters() if "proj" in name or "lm_head" in name]


@pytest.fixture
def export(tmp_path):
    """`delta, exported = export(base, model, mask)`: the adapter that makes `model` of `base`."""

    def run(base, model, mask, folder="adapter"):
        base.save_pretrained(tmp_path / "base")
        mask.info = replace(mask.info, base_model=str(tmp_path / "base"))
        delta = SparseDelta.from_model(model, mask, weights_fingerprint(base))
        return delta, export_adapter(delta, Checkpoint(tmp_path / "base"), tmp_path / folder)

    return run


def adapted(base, exported):
    return PeftModel.from_pretrained(copy.deepcopy(base), exported.folder).eval()


def assert_exact(base, model, exported):
    peft_model = adapted(base, exported)
    torch.testing.assert_close(peft_model(IDS).logits, model.eval()(IDS).logits)
    assert same_weights(peft_model.merge_and_unload(), model)
    assert (exported.num_inexact, exported.largest_error) == (0, 0.0)


def changed(base, edits):
    """A copy of `base` with new values `{(name, flat index): value}`, and the mask of them."""
    model, masks = copy.deepcopy(base), {}
    with torch.no_grad():
        for (name, index), value in edits.items():
            masks.setdefault(name, torch.zeros_like(model.get_parameter(name), dtype=torch.bool)).view(-1)[index] = (
                True
            )
            model.get_parameter(name).view(-1)[index] = value
    return model, WeightMask.from_dense(masks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_peft_makes_the_unlearned_model_bit_by_bit(dtype, export, tiny_model):
    base = tiny_model(dtype=dtype)
    model, mask = unlearned(base, names=linear(base))
    _, exported = export(base, model, mask)
    assert_exact(base, model, exported)
    assert exported.sparse and not exported.whole
    assert exported.num_changed <= mask.num_selected
    assert exported.num_bytes == sum(path.stat().st_size for path in exported.folder.iterdir())
    assert {path.name for path in exported.folder.iterdir()} == FILES


def test_the_config_names_the_base_so_that_the_folder_is_enough(export, tiny_model):
    base = tiny_model(dtype=torch.bfloat16)
    model, mask = unlearned(base, names=linear(base))
    _, exported = export(base, model, mask)
    config = json.loads((exported.folder / "adapter_config.json").read_text())
    assert (config["revision"], config["task_type"], config["inference_mode"]) == ("main", "CAUSAL_LM", True)
    found = AutoPeftModelForCausalLM.from_pretrained(exported.folder, dtype="auto")
    assert same_weights(found.merge_and_unload(), model)


def test_a_base_in_a_wider_dtype_is_rounded_as_it_was_for_training(tiny_model, tmp_path):
    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    rounded = copy.deepcopy(base).to(torch.bfloat16)
    model, mask = unlearned(rounded, names=linear(base))
    delta = SparseDelta.from_model(model, mask, weights_fingerprint(rounded))
    assert_exact(rounded, model, export_adapter(delta, Checkpoint(tmp_path / "base"), tmp_path / "adapter"))


def test_a_delta_in_memory_and_its_file_give_the_same_adapter(export, tiny_model, tmp_path):
    base = tiny_model(dtype=torch.bfloat16)
    model, mask = unlearned(base)
    delta, exported = export(base, model, mask)
    delta.save(tmp_path)
    again = export_adapter(SparseDelta.load(tmp_path), Checkpoint(tmp_path / "base"), tmp_path / "again")
    for name in FILES:
        assert (exported.folder / name).read_bytes() == (again.folder / name).read_bytes()


def test_rows_that_two_bytes_cannot_number(export, tiny_model):
    base = tiny_model(vocab_size=2**15 + 2, hidden_size=8)
    model, mask = changed(base, {("lm_head.weight", -1): 1.0, ("lm_head.weight", 0): 2.0})
    _, exported = export(base, model, mask)
    assert_exact(base, model, exported)
    indices = load_file(exported.folder / "adapter_model.safetensors")["base_model.model.lm_head.shira_indices"]
    assert indices.dtype == torch.int32
    assert indices.max() == 2**15 + 1


# Uneven masks


def test_layers_that_change_much_and_those_that_are_not_linear_are_there_as_a_whole(export, tiny_model):
    base = tiny_model(dtype=torch.bfloat16)
    model, mask = unlearned(base, 0.01)
    full, full_mask = unlearned(base, 1.0, names=[f"{UP}.weight"])
    with torch.no_grad():
        model.get_parameter(f"{UP}.weight").copy_(full.get_parameter(f"{UP}.weight"))
    mask.bits |= full_mask.bits
    _, exported = export(base, model, mask)
    assert_exact(base, model, exported)
    assert {UP, "model.embed_tokens"} <= set(exported.whole)
    assert "lm_head" in exported.sparse
    assert not set(exported.whole) & set(exported.sparse)


def test_a_layer_whose_bias_changes_is_there_as_a_whole(export, tiny_model):
    base = tiny_model(attention_bias=True)
    q, k = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
    model, mask = changed(base, {(f"{q}.weight", 3): 1.0, (f"{q}.bias", 0): 1.0, (f"{k}.weight", 0): 1.0})
    _, exported = export(base, model, mask)
    assert_exact(base, model, exported)
    assert (exported.sparse, exported.whole) == ([k], [q])


def test_only_layers_that_change_are_adapted(export, tiny_model):
    base = tiny_model(num_hidden_layers=12)  # layer 1 must not stand for layers 10 and 11
    _, mask = unlearned(base, 0.0)
    same = base.get_parameter(f"{UP}.weight")[0, 0].item()
    edits = {("model.layers.1.mlp.up_proj.weight", 7): 0.5, (f"{UP}.weight", 0): same, ("model.norm.weight", 0): 1.0}
    model, selected = changed(base, edits)
    mask.bits |= selected.bits
    _, exported = export(base, model, mask)
    assert_exact(base, model, exported)
    assert (exported.num_changed, exported.sparse, exported.whole) == (1, ["model.layers.1.mlp.up_proj"], [])
    assert len(load_file(exported.folder / "adapter_model.safetensors")) == 2


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hidden=st.sampled_from([8, 24, 40]),
    intermediate=st.integers(20, 70),
    vocab=st.integers(50, 99),
    densities=st.lists(st.sampled_from([0.0, 0.001, 0.02, 0.2, 0.9]), min_size=15, max_size=15),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_any_mask_of_linear_layers(hidden, intermediate, vocab, densities, dtype, seed, tiny_model, tmp_path_factory):
    base = tiny_model(seed, dtype, hidden_size=hidden, intermediate_size=intermediate, vocab_size=vocab)
    model, bits, shapes = copy.deepcopy(base), {}, {}
    for name, density in zip(linear(base), [*densities[:-1], 0.01], strict=True):
        model, mask = unlearned(model, density, seed, [name])
        bits |= mask.bits
        shapes |= mask.shapes
    folder = tmp_path_factory.mktemp("any")
    base.save_pretrained(folder / "base")
    delta = SparseDelta.from_model(model, WeightMask(bits, shapes), weights_fingerprint(base))
    exported = export_adapter(delta, Checkpoint(folder / "base"), folder / "adapter")
    peft_model = adapted(base, exported)
    inexact = sum(
        int((bit_patterns(a) != bit_patterns(b)).sum())
        for a, b in zip(peft_model.merge_and_unload().parameters(), model.parameters(), strict=True)
    )
    assert inexact == exported.num_inexact


# Exactness


def test_weights_that_fp32_sums_cannot_give_are_counted(export, tiny_model):
    base = tiny_model(dtype=torch.bfloat16)
    weight = base.get_parameter(f"{UP}.weight")
    with torch.no_grad():
        weight.view(-1)[:6] = torch.tensor([1.0, 1.0, -0.0, -0.0, 0.0, 2.0])
    edits = {0: 1e-9, 1: 0.003, 2: 0.0, 3: 1.0, 4: -1.0, 5: -0.0}
    model, mask = changed(base, {(f"{UP}.weight", index): value for index, value in edits.items()})
    _, exported = export(base, model, mask)
    merged = adapted(base, exported).merge_and_unload().get_parameter(f"{UP}.weight").view(-1)
    expected = model.get_parameter(f"{UP}.weight").view(-1)
    wrong = (bit_patterns(merged) != bit_patterns(expected)).nonzero().view(-1).tolist()
    assert wrong == [0, 5]  # 1 - 1e-9 is 1 in fp32; the sum of 2 and -2 is 0.0, not -0.0
    assert exported.num_inexact == 2
    assert exported.largest_error == expected[0].item() == pytest.approx(1e-9, rel=0.01)


def test_filling_up_leaves_the_sign_of_zeros(export, tiny_model):
    base = tiny_model()
    with torch.no_grad():
        base.get_parameter(f"{UP}.weight").fill_(-0.0)
    model, mask = changed(base, {(f"{UP}.weight", 5): 1.0})
    _, exported = export(base, model, mask)
    assert_exact(base, model, exported)


# Refusals


def refused(export, base, model, mask, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        export(base, model, mask)
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


@pytest.mark.parametrize("density", [0.0, 0.5])
def test_a_delta_that_changes_nothing_is_refused(density, export, tiny_model, tmp_path):
    base = tiny_model()
    _, mask = unlearned(base, density)
    refused(export, base, base, mask, "its values are those of the base. Write the model with `wagle apply`", tmp_path)


def test_tied_weights_are_refused(export, tiny_model, tmp_path):
    base = tiny_model(tie_word_embeddings=True)
    model, mask = unlearned(base)
    refused(export, base, model, mask, "weights that are tied .*: model.embed_tokens.weight", tmp_path)


def test_a_mask_of_nearly_all_weights_is_refused(export, tiny_model, tmp_path):
    base = tiny_model()
    model, mask = unlearned(base, 1.0, names=linear(base))
    refused(export, base, model, mask, "too large a part of each linear layer", tmp_path)


def test_a_model_without_linear_layers_of_its_own_is_refused(export, tmp_path):
    base = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2))
    model, mask = unlearned(base, names=["transformer.h.0.mlp.c_fc.weight"])
    refused(
        export,
        base,
        model,
        mask,
        "too large a part of each linear layer changes, or no linear layer changes",
        tmp_path,
    )


def test_another_base_is_refused(export, tiny_model, tmp_path):
    base = tiny_model()
    delta, _ = export(base, *unlearned(base, names=linear(base)))
    for name, other in (("seed", tiny_model(seed=1)), ("small", tiny_model(num_hidden_layers=1))):
        other.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match="The delta is for another"):
            export_adapter(delta, Checkpoint(tmp_path / name), tmp_path / "made")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter", "seed", "small"}


def test_a_failure_leaves_no_folder_and_nothing_is_overwritten(export, tiny_model, tmp_path, monkeypatch):
    base = tiny_model()
    delta, exported = export(base, *unlearned(base, names=linear(base)))
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        export_adapter(delta, Checkpoint(tmp_path / "base"), exported.folder)

    def full(*_, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr("wagle_trl.deltas.peft_export.write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        export_adapter(delta, Checkpoint(tmp_path / "base"), tmp_path / "made")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}
