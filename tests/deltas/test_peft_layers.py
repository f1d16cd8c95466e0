import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from wagle_trl.deltas.peft_layers import Layer, best_rank, changed_layers

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


@st.composite
def layers(draw):
    shape = (draw(st.integers(2, 60)), draw(st.integers(2, 60)))
    tensors = {"layer.weight": (draw(DTYPES), shape)}
    return Layer("layer", tensors, draw(st.integers(1, shape[0] * shape[1])), draw(st.booleans()))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(found=st.lists(layers(), min_size=1, max_size=8))
def test_no_rank_makes_a_smaller_adapter_and_each_sparse_layer_has_room(found):
    sizes = {
        rank: sum(layer.num_bytes(rank) for layer in found)
        for rank in range(1, 31)
        if any(layer.is_sparse(rank) for layer in found)
    }
    if not sizes:
        with pytest.raises(ValueError, match="too large a part of each linear layer"):
            best_rank(found)
        return
    rank = best_rank(found)
    assert sizes[rank] == min(sizes.values())
    for layer in found:
        if layer.is_sparse(rank):
            assert layer.num_changed <= layer.num_values(rank) <= layer.shape[0] * layer.shape[1]


def test_layers_are_found_by_what_changes_in_them(tmp_path):
    LlamaConfig(num_hidden_layers=1, attention_bias=True).save_pretrained(tmp_path)
    q, k, norm = ("model.layers.0." + name for name in ("self_attn.q_proj", "self_attn.k_proj", "input_layernorm"))
    names = [f"{name}.{key}" for name in (q, k) for key in ("weight", "bias")] + [f"{norm}.weight"]
    changed = {f"{q}.weight": 5, f"{k}.weight": 5, f"{k}.bias": 2, f"{norm}.weight": 1}
    found = changed_layers(tmp_path, changed, dict.fromkeys(names, torch.bfloat16))
    assert [(layer.name, layer.num_changed, layer.can_be_sparse) for layer in found] == [
        (q, 5, True),
        (k, 7, False),
        (norm, 1, False),
    ]
    assert found[0].tensors == {
        f"{q}.weight": (torch.bfloat16, (4096, 4096)),
        f"{q}.bias": (torch.bfloat16, (4096,)),
    }


@pytest.mark.parametrize("name", ["model.layers.0.mlp.other_proj.weight", "lm_head.weight", "weight"])
def test_tied_and_unknown_parameters_are_refused(name, tmp_path):
    LlamaConfig(num_hidden_layers=1, tie_word_embeddings=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"tied or belong to no single layer: {name}"):
        changed_layers(tmp_path, {name: 1}, {name: torch.float32})
