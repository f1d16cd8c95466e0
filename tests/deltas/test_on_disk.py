import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from wagle_trl import SparseDelta, WeightMask
from wagle_trl.deltas.delta import weights_fingerprint
from wagle_trl.deltas.merging import merge_deltas
from wagle_trl.deltas.on_disk import apply_to_folder, delta_between, undo_to_folder
from wagle_trl.deltas.peft_export import export_adapter
from wagle_trl.deltas.verification import verify
from wagle_trl.files.checkpoint import Checkpoint

from ..support.deltas import same_weights, unlearned

SHARDED = {"max_shard_size": "20KB"}


@pytest.fixture
def saved(tiny_model, tiny_tokenizer, tmp_path):
    """`base, model, mask = saved(dtype, base_dtype)`: a model and its base, saved in `base` (in shards) and `unlearned`."""

    def build(dtype=torch.float32, base_dtype=torch.float32, **config):
        base = tiny_model(dtype=base_dtype, **config)
        base.save_pretrained(tmp_path / "base", **SHARDED)
        tiny_tokenizer.save_pretrained(tmp_path / "base")
        model, mask = unlearned(base.to(dtype))
        model.save_pretrained(tmp_path / "unlearned")
        mask.save(tmp_path / "unlearned")
        return Checkpoint(tmp_path / "base"), Checkpoint(tmp_path / "unlearned"), mask

    return build


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_apply_writes_the_unlearned_model_and_undo_the_base(dtype, saved, tmp_path):
    base, model, mask = saved(dtype, dtype)
    delta = SparseDelta.load(delta_between(base, model, mask, undo=True, progress=False).save(tmp_path))
    made = apply_to_folder(delta, base, tmp_path / "made")
    assert same_weights(loaded(made), loaded(model.folder))
    assert WeightMask.load(made) == mask
    back = undo_to_folder(delta, Checkpoint(made), tmp_path / "back")
    assert same_weights(loaded(back), loaded(base.folder))
    assert not (back / "wagle_mask.safetensors").exists()
    names = sorted(path.name for path in base.folder.iterdir())
    assert sorted(path.name for path in back.iterdir()) == names
    assert len([name for name in names if name.startswith("model-")]) > 2


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.float16], ids=str)
def test_a_base_in_a_wider_dtype_is_rounded_as_it_was_for_training(base_dtype, saved, tmp_path):
    base, model, mask = saved(torch.bfloat16, base_dtype)
    with pytest.raises(
        ValueError, match=r"is float\d\d in '.*base' and bfloat16 in '.*unlearned': all of its weights were"
    ):
        delta_between(base, model, mask, progress=False)
    # The trainer's own delta is of the rounded base
    delta = SparseDelta.from_model(loaded(model.folder), mask, weights_fingerprint(loaded(base.folder).bfloat16()))
    made = apply_to_folder(delta, base, tmp_path / "made")
    assert loaded(made).dtype == torch.bfloat16
    assert same_weights(loaded(made), loaded(model.folder))
    assert json.loads((made / "config.json").read_text())["dtype"] == "bfloat16"
    assert not verify(Checkpoint(made), model, mask, progress=False).total.moved


def test_a_model_whose_config_declares_another_dtype_has_no_delta(saved):
    base, model, mask = saved()
    config = json.loads((model.folder / "config.json").read_text())
    (model.folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    with pytest.raises(ValueError, match=r"is float32 in '.*unlearned', whose config\.json declares 'float16'"):
        delta_between(base, Checkpoint(model.folder), mask, progress=False)


def test_a_base_in_a_narrower_dtype_is_one_only_if_it_was_trained_from(saved, tmp_path):
    base, model, mask = saved(torch.float32, torch.bfloat16)
    delta = delta_between(base, model, mask, progress=False)
    assert same_weights(loaded(apply_to_folder(delta, base, tmp_path / "made")), loaded(model.folder))
    wide, model, mask = saved(torch.float32, torch.float32)
    delta = delta_between(wide, model, mask, progress=False)
    loaded(wide.folder).bfloat16().save_pretrained(tmp_path / "rounded")
    with pytest.raises(ValueError, match="for another base"):
        apply_to_folder(delta, Checkpoint(tmp_path / "rounded"), tmp_path / "wrong")


def test_tied_weights_that_a_base_holds_twice_are_refused(tiny_model, tmp_path):
    base = tiny_model(tie_word_embeddings=True)
    model, mask = unlearned(base)
    delta = SparseDelta.from_model(model, mask, weights_fingerprint(base))
    base.save_pretrained(tmp_path / "base")
    weights = dict(Checkpoint(tmp_path / "base"))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"'model.embed_tokens.weight' a second time, as 'lm_head.weight'"):
        apply_to_folder(delta, Checkpoint(tmp_path / "base"), tmp_path / "made")


def test_deltas_of_models_and_of_folders_merge(saved):
    base, model, mask = saved()
    of_folders = delta_between(base, model, mask, progress=False)
    of_models = SparseDelta.from_model(loaded(model.folder), mask, weights_fingerprint(loaded(base.folder)))
    merged = merge_deltas([of_folders, of_models])
    assert merged.conflicts == dict.fromkeys(merged.conflicts, 0)
    assert merged.delta.mask == mask


def test_tied_weights_are_written_as_the_base_has_them(saved, tmp_path):
    base, model, mask = saved(tie_word_embeddings=True)
    made = apply_to_folder(delta_between(base, model, mask, progress=False), base, tmp_path / "made")
    assert same_weights(loaded(made), loaded(model.folder))


def test_a_delta_made_from_a_model_applies_to_its_folder_and_the_other_way_round(saved, tmp_path):
    base, model, mask = saved()
    start, end = loaded(base.folder), loaded(model.folder)
    of_models = SparseDelta.from_model(end, mask, weights_fingerprint(start), start)
    of_folders = delta_between(base, model, mask, progress=False)
    assert same_weights(loaded(apply_to_folder(of_models, base, tmp_path / "made")), end)
    assert same_weights(of_folders.apply(start), end)


def test_a_model_that_moved_outside_its_mask_has_no_delta(saved, tmp_path):
    base, model, mask = saved()
    narrow = WeightMask({name: torch.zeros_like(bits) for name, bits in mask.bits.items()}, mask.shapes)
    with pytest.raises(ValueError, match=r"[\d,]+ weights outside the mask differ from '.*base', in lm_head.weight"):
        delta_between(base, model, narrow, progress=False)


def test_a_model_with_another_config_has_no_delta(saved):
    base, model, mask = saved()
    config = json.loads((model.folder / "config.json").read_text())
    (model.folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 10.0}))
    with pytest.raises(ValueError, match="differ in rms_norm_eps; a delta holds weights only"):
        delta_between(base, Checkpoint(model.folder), mask, progress=False)


def test_another_base_is_refused_before_anything_is_written(saved, tiny_model, tmp_path):
    base, model, mask = saved()
    delta = delta_between(base, model, mask, undo=True, progress=False)
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    tiny_model(num_hidden_layers=1).save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="for another base"):
        apply_to_folder(delta, Checkpoint(tmp_path / "other"), tmp_path / "made")
    with pytest.raises(ValueError, match="small': The delta is for another model"):
        apply_to_folder(delta, Checkpoint(tmp_path / "small"), tmp_path / "made")
    with pytest.raises(ValueError, match="does not hold the values of this delta"):
        undo_to_folder(delta, base, tmp_path / "made")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "unlearned", "other", "small"}


def test_undo_finds_a_model_that_differs_outside_the_mask(saved, tmp_path):
    base, _, mask = saved()
    part = WeightMask({name: bits for name, bits in mask.bits.items() if "layers" in name}, mask.shapes)
    end = loaded(base.folder)
    with torch.no_grad():
        for name in part.bits:
            end.get_parameter(name)[part.dense(name)] += 1
    end.save_pretrained(tmp_path / "end")
    delta = delta_between(base, Checkpoint(tmp_path / "end"), part, undo=True, progress=False)
    with torch.no_grad():
        end.get_input_embeddings().weight += 1
    end.save_pretrained(tmp_path / "tampered")
    with pytest.raises(ValueError, match="for another base"):
        undo_to_folder(delta, Checkpoint(tmp_path / "tampered"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_an_empty_folder_is_taken_as_it_is_named(saved, tmp_path, monkeypatch):
    base, model, mask = saved()
    delta = delta_between(base, model, mask, progress=False)
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "here")
    for folder in (".", tmp_path / "link"):
        apply_to_folder(delta, base, folder)
    assert same_weights(loaded(tmp_path / "here"), loaded(tmp_path / "there"))


def test_nothing_is_overwritten(saved, tmp_path):
    base, model, mask = saved()
    delta = delta_between(base, model, mask, progress=False)
    with pytest.raises(ValueError, match="unlearned' exists and is not an empty folder"):
        apply_to_folder(delta, base, model.folder)
    (tmp_path / "empty").mkdir()
    apply_to_folder(delta, base, tmp_path / "empty")


@settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_one_weight_changed_anywhere_makes_another_base(data, one_pair, tmp_path_factory):
    base, model, delta = one_pair
    start, end, folder = loaded(base), loaded(model), tmp_path_factory.mktemp("changed")
    name = data.draw(st.sampled_from(sorted(start.state_dict())))
    place = data.draw(st.integers(0, start.state_dict()[name].numel() - 1))
    flip = 1 << data.draw(st.integers(0, 15))
    for changed in (start, end):
        changed.state_dict()[name].view(-1).view(torch.int16)[place] ^= flip
        changed.save_pretrained(folder / ("start" if changed is start else "end"))
    with pytest.raises(ValueError, match="for another base"):
        delta.apply(start)
    with pytest.raises(ValueError, match="for another base"):
        apply_to_folder(delta, Checkpoint(folder / "start"), folder / "made")
    with pytest.raises(ValueError, match="for another base"):
        export_adapter(delta, Checkpoint(folder / "start"), folder / "made", progress=False)
    with pytest.raises(ValueError, match=r"for another base|does not hold the values of this delta"):
        undo_to_folder(delta, Checkpoint(folder / "end"), folder / "made")
    selected = name in delta.mask.bits and delta.mask.dense(name).view(-1)[place]
    if not selected:
        with pytest.raises(ValueError, match="1 weights outside the mask differ"):
            delta_between(Checkpoint(folder / "start"), Checkpoint(model), delta.mask, progress=False)
    assert {path.name for path in folder.iterdir()} == {"start", "end"}


@pytest.fixture
def one_pair(saved, tmp_path):
    base, model, mask = saved(torch.bfloat16, torch.bfloat16, num_hidden_layers=1)
    delta = delta_between(base, model, mask, undo=True, progress=False)
    return base.folder, model.folder, SparseDelta.load(delta.save(tmp_path / "delta"))


def test_a_base_with_a_tensor_that_the_delta_does_not_know_is_another(saved, tmp_path):
    base, model, mask = saved(tie_word_embeddings=True)
    delta = delta_between(base, model, mask, progress=False)
    untied = loaded(base.folder)
    weights = dict(base) | {"lm_head.weight": base["model.embed_tokens.weight"] + 1}  # which transformers then unties
    untied.save_pretrained(tmp_path / "untied")
    save_file(weights, tmp_path / "untied" / "model.safetensors", {"format": "pt"})
    for use in (apply_to_folder, export_adapter):
        with pytest.raises(ValueError, match=r"untied' holds 'lm_head\.weight', which the delta's base does not have"):
            use(delta, Checkpoint(tmp_path / "untied"), tmp_path / "made")
    untied.lm_head.weight = torch.nn.Parameter(weights["lm_head.weight"])
    with pytest.raises(ValueError, match=r"for another base, which has no lm_head\.weight"):
        delta.apply(untied)
    assert not (tmp_path / "made").exists()
