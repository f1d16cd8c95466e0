"""Folders of models, and deltas for other ones: one line of error, the model as it was, and no new folder."""

import copy
import errno
import io
import json
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wagle_trl import SparseDelta, WeightMask
from wagle_trl.deltas.delta import weights_fingerprint
from wagle_trl.deltas.merging import merge_deltas
from wagle_trl.deltas.on_disk import apply_to_folder, undo_to_folder
from wagle_trl.files import tensor_file
from wagle_trl.files.checkpoint import Checkpoint
from wagle_trl.files.run_folder import MASK_FILE

from ..support.deltas import same_weights
from ..support.hostile import (
    CLEAR_SCREEN,
    base_model,
    check_error,
    contents,
    model_folder,
    refusal,
    sound_delta,
    unlearned_model,
    write_delta,
)

INDEX_FILE = "model.safetensors.index.json"

# Deltas for something else


def changed(edit):
    model = base_model()
    with torch.no_grad():
        edit(model)
    return model


def without_b(model):
    del model.b


VICTIMS = {
    "other weights": (lambda model: model.b.add_(1), "for another base: '.' with fingerprint"),
    "other shape": (
        lambda model: setattr(model, "a", nn.Parameter(torch.zeros(10, 40))),
        "has shape \\(10, 40\\) here",
    ),
    "fewer parameters": (without_b, "for another model, .*: b missing"),
    "other dtype": (lambda model: model.half(), r"is torch.float16, but torch.float32 in the delta|for another base"),
}


@pytest.mark.parametrize(("edit", "message"), VICTIMS.values(), ids=VICTIMS)
def test_a_delta_for_something_else_changes_no_module_and_makes_no_folder(edit, message, tmp_path):
    model, delta = changed(edit), SparseDelta.load(write_delta(tmp_path))
    before = copy.deepcopy(model)
    for method in (delta.apply, delta.undo):
        with pytest.raises(ValueError, match=f"{message}|does not hold the values"):
            method(model)
    assert same_weights(model, before)
    checkpoint = Checkpoint(model_folder(tmp_path / "model", model))
    files = contents(tmp_path)
    for make in (apply_to_folder, undo_to_folder):
        with pytest.raises(ValueError, match=f"{message}|does not hold the values"):
            make(delta, checkpoint, tmp_path / "made")
    assert contents(tmp_path) == files


def test_a_delta_that_names_a_buffer_changes_no_module():
    mask = WeightMask.from_dense({"a": torch.ones(40, 10), "c": torch.ones(2)})
    values = {"a": torch.zeros(400), "c": torch.zeros(2)}
    model = base_model()
    delta = SparseDelta(mask, values, dict.fromkeys("abc", torch.float32), weights_fingerprint(model), values)
    for method in (delta.apply, delta.undo):
        with pytest.raises(ValueError, match="The delta changes c, which the model does not have as parameters"):
            method(model)
    assert same_weights(model, base_model())


def test_deltas_of_one_fingerprint_and_other_shapes_do_not_merge():
    delta = sound_delta()
    mask = WeightMask.from_dense({"a": torch.ones(4, 10)})
    other = SparseDelta(mask, {"a": torch.zeros(40)}, delta.dtypes, delta.base_fingerprint)
    for deltas in ([delta, other], [other, delta]):
        with pytest.raises(ValueError, match="Delta 2 has a parameter in another shape"):
            merge_deltas(deltas)


# Folders of models

NO_MAP, NOT_HERE = "weight_map", "which is not a file of weights in the same folder"


def index(place, name="a"):
    return {"weight_map": {name: place}}


INDEXES = {
    "no JSON": ("{", "is not readable as JSON"),
    "not UTF-8": (b"\xff\xfe{}", "is not text in UTF-8"),
    "deep": ("[" * 100_000, "is not readable as JSON"),
    "endless number": ('{"weight_map": ' + "9" * 5000 + "}", "is not readable as JSON"),
    "a list": ([], "should be an object"),
    "no map": ({}, NO_MAP),
    "list for a map": ({"weight_map": ["a"]}, NO_MAP),
    "text for a map": ({"weight_map": "a"}, NO_MAP),
    "empty map": ({"weight_map": {}}, "maps no tensor to a file"),
    "number for a file": (index(1), NO_MAP),
    "list for a file": (index(["x.safetensors"]), NO_MAP),
    "folder above": (index("../outside.safetensors"), NOT_HERE),
    "folder below": (index("below/x.safetensors"), NOT_HERE),
    "absolute": (index("/outside.safetensors"), NOT_HERE),
    "backslash": (index("..\\outside.safetensors"), NOT_HERE),
    "dots": (index(".."), NOT_HERE),
    "empty name": (index(""), NOT_HERE),
    "NUL": (index("x\0.safetensors"), NOT_HERE),
    "clears the screen": (index(f"{CLEAR_SCREEN}.safetensors"), NOT_HERE),
    "half a character": ('{"weight_map": {"a": "\\ud800.safetensors"}}', "half a character"),
    "pickle": (index("pytorch_model.bin"), NOT_HERE),
    "place of our mask": (index(MASK_FILE), NOT_HERE),
    "missing file": (index("missing.safetensors"), "No file at .*missing.safetensors"),
    "long name": (index("x" * 300 + ".safetensors"), NOT_HERE),
    "folder for a file": (index("folder.safetensors"), "No file at .*folder.safetensors"),
    "tensor that the file lacks": (index("one.safetensors", "z"), "'z' is not in one.safetensors"),
    "name that clears the screen": (index("one.safetensors", CLEAR_SCREEN * 10**5), "is not in one.safetensors"),
    "tensor in two files": (
        {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}},
        "several files hold the same tensor",
    ),
}


@pytest.mark.parametrize(("content", "message"), INDEXES.values(), ids=INDEXES)
def test_a_hostile_index_is_refused_and_nothing_outside_the_folder_is_read(content, message, tmp_path):
    save_file(dict(base_model().state_dict()), tmp_path / "outside.safetensors")
    folder = tmp_path / "model"
    (folder / "folder.safetensors").mkdir(parents=True)
    for name in ("one.safetensors", "two.safetensors"):
        save_file(dict(base_model().state_dict()), folder / name)
    raw = content if isinstance(content, str | bytes) else json.dumps(content)
    (folder / INDEX_FILE).write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    with refusal(message, folder):
        Checkpoint(folder)


CONFIGS = {
    "no JSON": ("{", "is not readable as JSON"),
    "not UTF-8": (b"\xff\xfe{}", "is not text in UTF-8"),
    "deep": ("[" * 100_000, "is not readable as JSON"),
    "a list": ("[1]", "should be an object"),
    "null": ("null", "should be an object"),
    "other weights": ('{"transformers_weights": "other.safetensors"}', "makes transformers load other weights, too"),
}


@pytest.mark.parametrize(("content", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_hostile_config_is_refused_before_anything_is_written(content, message, tmp_path):
    folder = model_folder(tmp_path / "model")
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with refusal(message, tmp_path, names=folder):
        apply_to_folder(sound_delta(), Checkpoint(folder), tmp_path / "made")


@pytest.mark.parametrize("depth", [10, *range(840, 1060, 20), 2000, 10_000])
def test_a_config_is_written_or_refused_however_deep(depth, tmp_path):
    folder = model_folder(tmp_path / "model")
    (folder / "config.json").write_text('{"a": ' * depth + "1" + "}" * depth)
    try:
        apply_to_folder(sound_delta(), Checkpoint(folder), tmp_path / "made")
    except ValueError as error:
        check_error(error)
        assert not (tmp_path / "made").exists()


def test_an_adapter_beside_the_weights_is_refused(tmp_path):
    folder = model_folder(tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    with refusal("makes transformers load other weights, too: adapter_config.json", folder):
        Checkpoint(folder)


@pytest.mark.parametrize("shared", [False, True], ids=["of the repository", "of the cache"])
def test_a_snapshot_in_the_cache_of_the_hub_is_links_and_works(shared, tmp_path):
    repository = tmp_path / "hub" / "models--user--base"
    blobs = (tmp_path / "hub" if shared else repository) / "blobs"
    snapshot = repository / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    for path in model_folder(tmp_path / "model").iterdir():
        path.rename(blobs / path.name)
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / path.name, snapshot))
    made = apply_to_folder(sound_delta(), Checkpoint(snapshot), tmp_path / "made")
    assert not any(path.is_symlink() for path in made.iterdir())
    assert torch.equal(Checkpoint(made)["a"], unlearned_model().a)


def test_weights_may_be_links_as_nothing_but_tensors_is_read_from_them(tmp_path):
    folder = model_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    made = apply_to_folder(sound_delta(), Checkpoint(folder), tmp_path / "made")
    assert torch.equal(Checkpoint(made)["a"], unlearned_model().a)


def test_a_link_to_a_secret_is_not_copied(tmp_path):
    (tmp_path / "secret").write_text("secret")
    folder = model_folder(tmp_path / "model")
    (folder / "tokenizer.json").symlink_to("../secret")
    with refusal("tokenizer.json links to a file elsewhere", tmp_path, names=folder / "tokenizer.json"):
        apply_to_folder(sound_delta(), Checkpoint(folder), tmp_path / "made")


# Interrupted


def interrupt(monkeypatch, error, writes):
    """The disk fails after so many writes to safetensors files."""
    left = [writes]

    class Disk(io.FileIO):
        def write(self, data):
            left[0] -= 1
            if left[0] < 0:
                raise error
            return super().write(data)

    monkeypatch.setattr(
        tensor_file, "open", lambda path, mode: (Disk if "w" in mode else open)(path, mode), raising=False
    )


ACTIONS = {
    "save": lambda folder: sound_delta().save(folder),
    "apply": lambda folder: apply_to_folder(sound_delta(), Checkpoint(folder / "base"), folder / "made"),
    "undo": lambda folder: undo_to_folder(sound_delta(), Checkpoint(folder / "end"), folder / "made"),
}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("writes", [0, 1, 3])
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_what_is_interrupted_leaves_the_old_files_and_no_new_ones(action, writes, error, tmp_path, monkeypatch):
    model_folder(tmp_path / "base")
    model_folder(tmp_path / "end", unlearned_model())
    write_delta(tmp_path)
    before = contents(tmp_path)
    interrupt(monkeypatch, error, writes)
    with pytest.raises(type(error)):
        action(tmp_path)
    assert contents(tmp_path) == before
