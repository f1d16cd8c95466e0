"""A model that is attacked, sound files to damage, and what may come of it: one line, and nothing changed."""

import json
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load, save, save_file
from torch import nn

from wagle_trl import SparseDelta, WeightMask
from wagle_trl.deltas.delta import weights_fingerprint
from wagle_trl.files.checkpoint import Checkpoint
from wagle_trl.files.run_folder import DELTA_FILE, MASK_FILE

MODEL_FILE = "model.safetensors"
FILES = {"mask": MASK_FILE, "delta": DELTA_FILE, "model": MODEL_FILE}
KINDS = pytest.mark.parametrize("kind", FILES)
UNSOUND = "is not a readable safetensors file"
CLEAR_SCREEN = "\x1b[2J\n"  # what a terminal must not be made to do


def opened(kind, folder):
    return {"mask": WeightMask.load, "delta": SparseDelta.load, "model": Checkpoint}[kind](folder)


def base_model():
    model = nn.Module()
    generator = torch.Generator().manual_seed(0)
    model.a = nn.Parameter(torch.randn(40, 10, generator=generator))
    model.b = nn.Parameter(torch.randn(5, generator=generator))
    model.register_buffer("c", torch.zeros(2))
    return model


def mask_of_five():
    return WeightMask.from_dense({"a": torch.arange(400).view(40, 10) % 150 == 7, "b": torch.arange(5) > 2})


def unlearned_model():
    model, mask = base_model(), mask_of_five()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter[mask.dense(name)] += 1
    return model


def sound_delta():
    return SparseDelta.from_model(unlearned_model(), mask_of_five(), weights_fingerprint(base_model()), base_model())


def model_folder(folder, model=None):
    folder.mkdir(exist_ok=True)
    save_file(dict((model or base_model()).state_dict()), folder / MODEL_FILE, {"format": "pt"})
    (folder / "config.json").write_text('{"dtype": "float32"}')
    return folder


@cache
def sound(kind):
    """Content of a file that is as it should be."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / FILES[kind]
        if kind == "model":
            model_folder(path.parent)
        else:
            {"mask": mask_of_five, "delta": sound_delta}[kind]().save(path)
        return path.read_bytes()


def split(content):
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_delta(folder, metadata=None, tensors=None):
    """A delta whose metadata and tensors are changed; `None` removes."""
    changed = split(sound("delta"))[0]["__metadata__"] | (metadata or {})
    held = load(sound("delta")) | (tensors or {})
    content = save(
        {key: tensor for key, tensor in held.items() if tensor is not None},
        {key: text for key, text in changed.items() if text is not None},
    )
    (folder / DELTA_FILE).write_bytes(content)
    return folder


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@contextmanager
def refusal(message, folder, *, names=None):
    """What happens inside ends with one printable line that names a file, and leaves `folder` as it is."""
    before = contents(folder)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        yield
    check_error(caught.value)
    assert str(names or folder) in str(caught.value)
    assert contents(folder) == before


def check_error(error):
    assert type(error) is ValueError or isinstance(error, OSError)
    assert str(error).isprintable() and len(str(error)) < 800
