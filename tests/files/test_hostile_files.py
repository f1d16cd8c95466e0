"""Masks, deltas and models come from strangers: whatever is in their files, the worst is one line that names the file."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load

from wagle_trl import SparseDelta, WeightMask
from wagle_trl.deltas.on_disk import apply_to_folder
from wagle_trl.files.checkpoint import Checkpoint
from wagle_trl.files.run_folder import DELTA_FILE
from wagle_trl.files.tensor_file import TensorFile
from wagle_trl.memory.allocations import Allocations

from ..support.hostile import (
    CLEAR_SCREEN,
    FILES,
    KINDS,
    MODEL_FILE,
    UNSOUND,
    base_model,
    contents,
    join,
    model_folder,
    opened,
    refusal,
    sound,
    split,
    write_delta,
)


@KINDS
def test_the_sound_files_of_the_damaged_ones_open(kind, tmp_path):
    (tmp_path / FILES[kind]).write_bytes(sound(kind))
    assert opened(kind, tmp_path)


# Damaged or hostile safetensors

HUGE = 2**62


def first(header):
    return min((v for k, v in header.items() if k != "__metadata__"), key=lambda entry: entry["data_offsets"])


def last(header):
    return max((v for k, v in header.items() if k != "__metadata__"), key=lambda entry: entry["data_offsets"])


def add(name="x", dtype="U8", shape=(0,)):
    return lambda header: header.update({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}})


def set_first(**changes):
    return lambda header: first(header).update(changes)


def shifted(by):
    def edit(header):
        start, end = last(header)["data_offsets"]
        last(header)["data_offsets"] = [start + by, end + by]

    return edit


TRUNCATED = {
    "empty": 0,
    "within the length": 5,
    "after the length": 8,
    "within the header": 30,
    "within the data": -5,
    "one byte short": -1,
}
CONTAINERS = {
    "a byte more": lambda content: content + b"\0",
    "header beyond the file": lambda content: (2**20).to_bytes(8, "little") + content[8:],
    "header of 2**63 bytes": lambda content: (2**63).to_bytes(8, "little") + content[8:],
    "header of 2**64 - 1 bytes": lambda content: b"\xff" * 8 + content[8:],
    "header of no bytes": lambda content: bytes(8) + content[8:],
    "no JSON": lambda content: join(b"{" * 50, b""),
    "no object": lambda content: join([1, 2], b""),
    "null": lambda content: join(None, b""),
    "not a number": lambda content: join(b'{"x": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 0]}}', b""),
    "not UTF-8": lambda content: join(b'{"\xff": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}', b""),
    "half a character": lambda content: join(
        b'{"\\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}', b""
    ),
    "deep lists": lambda content: join(b'{"x": ' + b"[" * 100_000, b""),
    "deep objects": lambda content: join(b'{"x": ' * 100_000, b""),
    "two metadata": lambda content: join(b'{"__metadata__": {}, "__metadata__": {}}', b""),
    "text": lambda content: b"not a mask, not a delta and not a model",
}
HEADERS = {
    "overlap": (shifted(-1), UNSOUND),
    "hole": (shifted(1), UNSOUND),
    "reversed offsets": (lambda header: first(header)["data_offsets"].reverse(), UNSOUND),
    "negative offsets": (set_first(data_offsets=[-4, 0]), UNSOUND),
    "offsets beyond the file": (set_first(data_offsets=[0, 2**40]), UNSOUND),
    "offsets beyond 64 bits": (set_first(data_offsets=[2**64, 2**65]), UNSOUND),
    "offsets of text": (set_first(data_offsets=["0", "4"]), UNSOUND),
    "three offsets": (set_first(data_offsets=[0, 1, 2]), UNSOUND),
    "no offsets": (lambda header: first(header).pop("data_offsets"), UNSOUND),
    "no shape": (lambda header: first(header).pop("shape"), UNSOUND),
    "larger shape": (set_first(shape=[1000, 1000]), UNSOUND),
    "huge shape": (set_first(shape=[HUGE, HUGE]), UNSOUND),
    "negative shape": (set_first(shape=[-1]), UNSOUND),
    "fractional shape": (set_first(shape=[2.0]), UNSOUND),
    "shape of text": (set_first(shape="5"), UNSOUND),
    "shape with text": (set_first(shape=["5"]), UNSOUND),
    "nested shape": (set_first(shape=[[5]]), UNSOUND),
    "shape of truth": (set_first(shape=[True]), UNSOUND),
    "null shape": (set_first(shape=None), UNSOUND),
    "size of 2**64 - 1 beside 0": (add(shape=[0, 2**64 - 1]), "'x' has an invalid shape"),
    "a hundred dimensions": (add(shape=[0] * 100), "'x' has an invalid shape"),
    "unknown dtype": (set_first(dtype="F99"), UNSOUND),
    "dtype of a number": (set_first(dtype=7), UNSOUND),
    "dtype that clears the screen": (set_first(dtype=CLEAR_SCREEN * 1000), UNSOUND),
    "dtype that torch lacks": (add(dtype="F8_E8M0"), "'x' has dtype F8_E8M0; expected one of F64"),
    "name that clears the screen": (add(CLEAR_SCREEN), "is not a valid name of a tensor"),
    "name with a NUL": (add("a\0b"), "is not a valid name of a tensor"),
    "name of a million letters": (add("a" * 10**6), "is not a valid name of a tensor"),
    "name that reads backwards": (add("a\u202eb"), "is not a valid name of a tensor"),
    "metadata of a number": (lambda header: header.update(__metadata__=1), UNSOUND),
    "list of metadata": (lambda header: header.update(__metadata__=["a"]), UNSOUND),
    "number in the metadata": (lambda header: header.update(__metadata__={"a": 1}), UNSOUND),
    "object in the metadata": (lambda header: header.update(__metadata__={"a": {"b": "c"}}), UNSOUND),
}


@KINDS
@pytest.mark.parametrize("length", TRUNCATED.values(), ids=TRUNCATED)
def test_a_truncated_file_is_refused(kind, length, tmp_path):
    (tmp_path / FILES[kind]).write_bytes(sound(kind)[:length])
    with refusal(UNSOUND, tmp_path, names=tmp_path / FILES[kind]):
        opened(kind, tmp_path)


@KINDS
@pytest.mark.parametrize("damage", CONTAINERS.values(), ids=CONTAINERS)
def test_a_file_that_is_no_safetensors_is_refused(kind, damage, tmp_path):
    (tmp_path / FILES[kind]).write_bytes(damage(sound(kind)))
    with refusal(UNSOUND, tmp_path, names=tmp_path / FILES[kind]):
        opened(kind, tmp_path)


@KINDS
@pytest.mark.parametrize(("edit", "message"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies_is_refused(kind, edit, message, tmp_path):
    header, data = split(sound(kind))
    edit(header)
    (tmp_path / FILES[kind]).write_bytes(join(header, data))
    with refusal(message, tmp_path, names=tmp_path / FILES[kind]):
        opened(kind, tmp_path)


ODD = {
    "null metadata": b'{"__metadata__": null, "w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}',
    "an entry as a list": b'{"w": ["U8", [2], [0, 2]]}',
    "a name twice": b'{"w": {"dtype": "F64", "shape": [9], "data_offsets": [0, 72]}, "w": {"dtype": "U8", "shape": [2],'
    b' "data_offsets": [0, 2]}}',
    "more fields": b'{"w": {"x": [[{}]], "dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}',
    "an escaped name": b'{"\\u0077": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}',
}


@pytest.mark.parametrize("header", ODD.values(), ids=ODD)
def test_an_odd_header_is_read_as_safetensors_reads_it(header, tmp_path):
    content = join(header, b"ab")
    (tmp_path / MODEL_FILE).write_bytes(content)
    file, expected = TensorFile(tmp_path / MODEL_FILE), load(content)
    assert file.keys() == expected.keys() == {"w"}
    assert torch.equal(file["w"], expected["w"])
    assert file.metadata == {}


@pytest.mark.parametrize("kind", ["mask", "delta"])
def test_thousands_of_tensors_that_nothing_declares_are_refused(kind, tmp_path):
    header, data = split(sound(kind))
    for i in range(20_000):
        add(f"t{i}")(header)
    (tmp_path / FILES[kind]).write_bytes(join(header, data))
    with refusal("name different parameters|does not declare all", tmp_path):
        opened(kind, tmp_path)


# Metadata that lies. Those of masks are in test_mask.py

SHAPES, DTYPES = "holds no valid parameter shapes", "holds no valid dtypes of all parameters"
NO_DELTA = "is not a wagle delta of format version 2"


def shapes(**changes):
    return {"shapes": json.dumps({"a": [40, 10], "b": [5]} | changes)}


def dtypes(**changes):
    return {"dtypes": json.dumps({"a": "F32", "b": "F32"} | changes)}


DELTA_METADATA = {
    "no version": ({"format_version": None}, NO_DELTA),
    "another version": ({"format_version": "1"}, NO_DELTA),
    "no fingerprint": ({"base_fingerprint": None}, NO_DELTA),
    "no count": ({"k": None}, "declares k = None, but there are 5 positions"),
    "wrong count": ({"k": "6"}, "declares k = '6', but there are 5 positions"),
    "count that clears the screen": ({"k": CLEAR_SCREEN * 10**5}, r"declares k = '\\x1b"),
    "count in other digits": ({"k": "٥"}, "declares k = '٥', but there are 5 positions"),
    "no shapes": ({"shapes": None}, SHAPES),
    "shapes of no JSON": ({"shapes": "{"}, SHAPES),
    "list of shapes": ({"shapes": "[[40, 10], [5]]"}, SHAPES),
    "deep shapes": ({"shapes": "[" * 100_000}, SHAPES),
    "endless number": ({"shapes": '{"a": [' + "9" * 5000 + "]}"}, SHAPES),
    "number for a shape": (shapes(a=400), SHAPES),
    "text for a shape": (shapes(a="40"), SHAPES),
    "truth for a size": (shapes(b=[True, 5]), SHAPES),
    "fractional size": (shapes(b=[5.0]), SHAPES),
    "negative sizes": (shapes(a=[-40, -10]), SHAPES),
    "sizes beyond 64 bits": (shapes(a=[HUGE, HUGE]), SHAPES),
    "huge size beside 0": (shapes(a=[0, HUGE, HUGE]), SHAPES),
    "thousands of dimensions": (shapes(a=[2**60] * 10_000), SHAPES),
    "name that clears the screen": (shapes(**{CLEAR_SCREEN: [5]}), SHAPES),
    "half a character": ({"shapes": '{"a": [40, 10], "\\ud800": [5]}'}, SHAPES),
    "2**60 weights of a few gaps": (shapes(a=[2**60]), f"'a' has gaps that do not lead to the end of its {2**60} wei"),
    "2**60 weights of one byte of bits": (shapes(b=[2**60]), f"'b' of {2**60} weights needs {2**57} mask bytes"),
    "one weight more": (shapes(a=[401]), "'a' has gaps that do not lead to the end of its 401 weights"),
    "one weight fewer": (shapes(a=[399]), "'a' has gaps that do not lead to the end of its 399 weights"),
    "bits beyond the weights": (shapes(b=[4]), "'b' has mask bits set beyond its 4 weights"),
    "parameter that the file lacks": (shapes(z=[5]) | dtypes(z="F32"), "'z' must have exactly one code of positions"),
    "parameter that is not declared": ({"shapes": '{"a": [40, 10]}'}, "does not declare all parameters"),
    "nothing": ({"shapes": "{}", "dtypes": "{}", "k": "0"}, DTYPES),
    "no dtypes": ({"dtypes": None}, DTYPES),
    "list of dtypes": ({"dtypes": '["F32", "F32"]'}, DTYPES),
    "deep dtypes": ({"dtypes": '{"a": ' * 100_000}, DTYPES),
    "list for a dtype": (dtypes(a=["F32"]), DTYPES),
    "unknown dtype": (dtypes(a="F99"), DTYPES),
    "dtypes of too few": ({"dtypes": '{"a": "F32"}'}, DTYPES),
    "dtype of a name that clears the screen": (dtypes(**{CLEAR_SCREEN: "F32"}), DTYPES),
    "dtype unlike the values": (dtypes(b="BF16"), "the values of 'b' are not torch.bfloat16 as declared"),
}


@pytest.mark.parametrize(("changes", "message"), DELTA_METADATA.values(), ids=DELTA_METADATA)
def test_a_delta_whose_metadata_lies_is_refused_without_memory_for_what_it_claims(changes, message, tmp_path):
    write_delta(tmp_path, changes)
    with Allocations() as memory, refusal(message, tmp_path, names=tmp_path / DELTA_FILE):
        SparseDelta.load(tmp_path)
    assert memory.peak < 10_000


# Tensors that do not belong together


def code(*values):
    return torch.tensor(values, dtype=torch.uint8)


GAPS = "'a' has gaps that do not lead to the end of its 400 weights"
COUNT = "'a' has 3 positions, but values of shape"
INCOMPLETE = "must have exactly one code of positions, and all values"
DELTA_TENSORS = {
    "both codings": ({"bits:a": code(*[0] * 50)}, INCOMPLETE),
    "no positions": ({"gaps:a": None}, INCOMPLETE),
    "no values": ({"new:a": None}, INCOMPLETE),
    "old values of one parameter": ({"old:a": None}, INCOMPLETE),
    "a tensor more": ({"x": code(1)}, "does not declare all parameters"),
    "values of one more": ({"new:z": torch.zeros(1)}, "does not declare all parameters"),
    "no gaps": ({"gaps:a": code()}, GAPS),
    "gaps that end in 255": ({"gaps:a": code(7, 149, 149, 91, 255)}, GAPS),
    "gaps that end early": ({"gaps:a": code(7, 149, 149)}, GAPS),
    "gaps that end late": ({"gaps:a": code(7, 149, 149, 254)}, GAPS),
    "gaps in two dimensions": ({"gaps:a": code(7, 149, 149, 92).view(2, 2)}, "needs gaps in one dimension of bytes"),
    "gaps of signed bytes": ({"gaps:a": code(7, 149, 149, 92).view(torch.int8)}, "needs gaps in one dimension of byt"),
    "one gap more": ({"gaps:a": code(7, 149, 149, 0, 91)}, "'a' has 4 positions, but values of shape"),
    "bits beyond the end": ({"bits:b": code(0b111000)}, "'b' has mask bits set beyond its 5 weights"),
    "bits of too many bytes": ({"bits:b": code(0b11000, 0)}, "'b' of 5 weights needs 1 mask bytes"),
    "one bit fewer": ({"bits:b": code(0b10000)}, "'b' has 1 positions, but values of shape"),
    "too few values": ({"new:a": torch.zeros(2)}, COUNT),
    "too many values": ({"old:a": torch.zeros(4)}, COUNT),
    "values in two dimensions": ({"new:a": torch.zeros(3, 1)}, COUNT),
    "values of another dtype": ({"new:a": torch.zeros(3).half()}, "the values of 'a' are not torch.float32 as decla"),
}


@pytest.mark.parametrize(("changes", "message"), DELTA_TENSORS.values(), ids=DELTA_TENSORS)
def test_a_delta_whose_tensors_do_not_belong_together_is_refused(changes, message, tmp_path):
    write_delta(tmp_path, tensors=changes)
    with refusal(message, tmp_path, names=tmp_path / DELTA_FILE):
        SparseDelta.load(tmp_path)


def test_a_gap_code_stands_for_at_most_255_weights_a_byte(tmp_path):
    long = torch.full((1000,), 255, dtype=torch.uint8)
    long[-1] = 254
    write_delta(
        tmp_path,
        shapes(a=[999 * 255 + 254]) | {"k": "2"},
        {"gaps:a": long, "new:a": torch.zeros(0), "old:a": torch.zeros(0)},
    )
    with Allocations() as memory:
        delta = SparseDelta.load(tmp_path)
        assert delta.num_selected == 2
    assert memory.peak < 255 * len(long)


NAMES = (
    "../../x",
    "/etc/passwd",
    "a/b",
    "..\\x",
    "~",
    "wagle_mask.safetensors",
    "",
    "é",
    "new:a",
    "gaps:a",
    "x" * 390,
)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_only_names(name, tmp_path):
    home = tmp_path / "home"
    model_folder(home)
    mask = WeightMask.from_dense({name: torch.ones(3)})
    SparseDelta(mask, {name: torch.zeros(3)}, {name: torch.float32}, "0" * 16).save(home)
    mask.save(home)
    delta, before = SparseDelta.load(home), contents(tmp_path)
    assert delta.mask == WeightMask.load(home) == mask
    with pytest.raises(ValueError, match="for another model"):
        apply_to_folder(delta, Checkpoint(home), tmp_path / "made")
    with pytest.raises(ValueError, match="for another model"):
        delta.apply(base_model())
    assert contents(tmp_path) == before


# Pickles


class _Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


PICKLES = {
    "pickle": lambda payload, path: path.write_bytes(pickle.dumps(payload)),
    "torch.save": lambda payload, path: torch.save({"a": payload}, path),
    "old torch.save": lambda payload, path: torch.save(payload, path, _use_new_zipfile_serialization=False),
}
PLACES = [*FILES.items(), ("model", "pytorch_model.bin")]


@pytest.mark.parametrize("dump", PICKLES.values(), ids=PICKLES)
@pytest.mark.parametrize(("kind", "name"), PLACES, ids=[name for _, name in PLACES])
def test_a_pickle_is_refused_and_does_not_run(kind, name, dump, tmp_path):
    dump(_Payload(tmp_path / "marker"), tmp_path / name)
    with refusal(f"{UNSOUND}|holds no model.safetensors", tmp_path):
        opened(kind, tmp_path)
    assert os.listdir(tmp_path) == [name]
