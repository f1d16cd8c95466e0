import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from wagle_trl.files.tensor_file import DTYPE_NAMES, TensorFile
from wagle_trl.masks import fingerprint as module
from wagle_trl.masks.fingerprint import fingerprint, fingerprint_of, model_fingerprint


def test_it_is_that_of_the_weights_in_any_dtype_that_holds_them(tiny_model):
    half = tiny_model(dtype=torch.bfloat16)
    assert model_fingerprint(half) == model_fingerprint(tiny_model(dtype=torch.bfloat16).float())
    assert model_fingerprint(half) != model_fingerprint(tiny_model(seed=1, dtype=torch.bfloat16))


@pytest.mark.parametrize("change", ["name", "shape", "value"])
def test_it_sees_names_shapes_and_values(change):
    model, changed = nn.Sequential(nn.Linear(4, 6)), nn.Sequential(nn.Linear(4, 6))
    changed.load_state_dict(model.state_dict())
    assert model_fingerprint(model) == model_fingerprint(changed)
    if change == "name":
        changed = nn.ModuleDict({"renamed": changed[0]})
    elif change == "shape":
        changed[0].weight = nn.Parameter(changed[0].weight.detach().view(3, 8))
    else:
        changed[0].bias.data[3] += 0.1
    assert model_fingerprint(model) != model_fingerprint(changed)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_one_bit_changed_anywhere_changes_it(data):
    shapes = {"a": (3, 50), "b": (7,), "c": ()}
    weights = {name: torch.randn(shape, generator=torch.Generator().manual_seed(0)) for name, shape in shapes.items()}
    before = fingerprint_of(weights)
    flat = weights[data.draw(st.sampled_from(sorted(weights)))].view(-1).view(torch.int32)
    flat[data.draw(st.integers(0, len(flat) - 1))] ^= 1 << data.draw(st.integers(0, 30))
    assert fingerprint_of(weights) != before


@pytest.mark.parametrize("piece", [1, 7, 2**20])
def test_files_and_models_have_the_same_and_it_is_no_matter_in_which_order(piece, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", piece)
    weights = {f"w{i}": torch.arange(i, i + 24).to(dtype).view(4, 6) for i, dtype in enumerate(DTYPE_NAMES)}
    weights["empty"] = torch.zeros(3, 0)
    save_file(weights, tmp_path / "model.safetensors")
    file = TensorFile(tmp_path / "model.safetensors")
    dtypes, shapes = ({name: of(name) for name in file} for of in (file.dtype, file.shape))
    in_memory = fingerprint_of(dict(reversed(weights.items())))
    assert fingerprint(dtypes, shapes, file.read) == in_memory
    strided = {name: values.t().contiguous().t() if values.numel() else values for name, values in weights.items()}
    assert fingerprint_of(strided) == in_memory
