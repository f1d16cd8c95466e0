import json
import os
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from wagle_trl.files.tensor_file import (
    DTYPE_NAMES,
    DTYPES,
    LazyTensors,
    TensorFile,
    bit_patterns,
    first_few,
    write_tensors,
)

SHAPES = ((), (0,), (3, 0), (1,), (7,), (3, 5), (2, 3, 4))
OF_ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPE_NAMES, ids=str)


def values(dtype, shape, seed=0):
    """Random bytes as numbers: NaN, infinities and all."""
    generator = torch.Generator().manual_seed(seed)
    numel = torch.Size(shape).numel()
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    return (
        torch.randint(0, 256, (numel * dtype.itemsize,), generator=generator, dtype=torch.uint8)
        .view(dtype)
        .view(shape)
    )


def same(a, b):
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(bit_patterns(a), bit_patterns(b))


def write(path, tensors, **metadata):
    write_tensors(path, {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}, tensors.get, metadata)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.safetensors"


# Reading


@OF_ALL_DTYPES
def test_a_file_reads_as_safetensors_reads_it(dtype, path):
    save_file({f"t{i}": values(dtype, shape) for i, shape in enumerate(SHAPES)}, path, {"format": "pt"})
    file, expected = TensorFile(path), load_file(path)
    assert set(file) == set(expected) and len(file) == len(SHAPES)
    for name, tensor in expected.items():
        assert name in file
        assert (file.shape(name), file.dtype(name)) == (tuple(tensor.shape), dtype)
        assert same(file[name], tensor)
    assert file.metadata == {"format": "pt"}
    assert "other" not in file


@OF_ALL_DTYPES
def test_a_part_of_a_tensor_is_that_of_the_whole(dtype, path):
    tensor = values(dtype, (5, 7))
    save_file({"before": values(torch.uint8, (3,)), "w": tensor}, path)
    file, flat = TensorFile(path), tensor.view(-1)
    for start, stop in ((0, 35), (0, 1), (34, 35), (8, 24), (5, 5), (35, 35)):
        assert same(file.read("w", start, stop), flat[start:stop])
    assert same(file.read("w", 30), flat[30:])


def test_only_what_is_asked_for_is_read(path, allocations):
    save_file({"w": torch.zeros(1000), "v": torch.zeros(1000)}, path)
    with allocations as memory:
        file = TensorFile(path)
        file.read("w", 10, 20)
    assert memory.peak <= 100


def test_a_file_without_metadata_or_tensors_is_read(path):
    save_file({}, path)
    assert not TensorFile(path) and TensorFile(path).metadata == {}


def test_a_tensor_that_is_not_there_is_a_key_error(path):
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(KeyError, match="v"):
        TensorFile(path)["v"]


def test_a_file_that_shrinks_after_it_was_opened_is_noticed(path):
    save_file({"w": torch.zeros(1000)}, path)
    file = TensorFile(path)
    os.truncate(path, 500)
    with pytest.raises(ValueError, match=f"{path} ends within 'w'; it was truncated while it was read"):
        file["w"]


# Writing


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(list(DTYPE_NAMES)), st.sampled_from(SHAPES)), max_size=6))
def test_what_is_written_reads_back_here_and_in_safetensors(tmp_path_factory, kinds):
    path = tmp_path_factory.mktemp("file") / "some.safetensors"
    tensors = {f"tensor {i} é": values(dtype, shape, i) for i, (dtype, shape) in enumerate(kinds)}
    write(path, tensors, format="pt", note='a "quoted"\nline of é')
    for read in (TensorFile(path), load_file(path)):
        assert set(read) == set(tensors)
        assert all(same(read[name], tensor) for name, tensor in tensors.items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == TensorFile(path).metadata == {"format": "pt", "note": 'a "quoted"\nline of é'}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(list(DTYPE_NAMES)), st.integers(0, 9)), max_size=8))
def test_every_tensor_starts_at_a_multiple_of_its_element_size(tmp_path_factory, kinds):
    path = tmp_path_factory.mktemp("file") / "some.safetensors"
    write(path, {f"t{i}": values(dtype, (numel,)) for i, (dtype, numel) in enumerate(kinds)})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for entry in header.values():
        if "dtype" in entry:
            assert (8 + length + entry["data_offsets"][0]) % DTYPES[entry["dtype"]].itemsize == 0


def test_transposed_tensors_are_written_in_the_order_of_their_rows(path):
    tensor = values(torch.float32, (3, 5)).t()
    write(path, {"w": tensor})
    assert same(load_file(path)["w"], tensor.contiguous())


def test_transformers_loads_a_model_that_was_written_so(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    tensors = dict(model.state_dict())
    write(tmp_path / "model.safetensors", tensors, format="pt")
    loaded = type(model).from_pretrained(tmp_path)
    assert all(same(tensor, tensors[name]) for name, tensor in loaded.state_dict().items())


def test_one_tensor_is_held_at_a_time(path, allocations):
    specs = {f"t{i}": (torch.float32, (1000,)) for i in range(10)}
    with allocations as memory:
        write_tensors(path, specs, lambda name: torch.zeros(1000), {})
    assert memory.peak <= 2 * 4000


@pytest.mark.parametrize("given", [torch.zeros(4), torch.zeros(3, dtype=torch.float16)], ids=["shape", "dtype"])
def test_a_tensor_unlike_its_declaration_is_refused_and_the_old_file_kept(given, path):
    old = write(path, {"w": torch.ones(3)}).read_bytes()
    with pytest.raises(ValueError, match=r"'w' is torch.float\d\d \(\d,\), not .* as declared"):
        write_tensors(path, {"w": (torch.float32, (3,))}, lambda name: given, {})
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


def test_an_interrupted_write_leaves_nothing(path):
    def read(name):
        if name == "b":
            raise KeyboardInterrupt
        return torch.zeros(3)

    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, {"a": (torch.float32, (3,)), "b": (torch.float32, (3,))}, read, {})
    assert not os.listdir(path.parent)


# Lazy tensors


def test_lazy_tensors_are_made_when_they_are_asked_for_and_not_to_look_for_a_name():
    made = []
    tensors = LazyTensors(["a", "b"], lambda name: made.append(name) or torch.zeros(1))
    assert list(tensors) == ["a", "b"] and len(tensors) == 2
    assert "a" in tensors and "c" not in tensors
    assert made == []
    assert torch.equal(tensors["b"], torch.zeros(1)) and made == ["b"]
    with pytest.raises(KeyError, match="c"):
        tensors["c"]


def test_bit_patterns_tell_zeros_apart_and_not_a_number_equal_to_itself():
    assert not torch.equal(bit_patterns(torch.tensor([0.0])), bit_patterns(torch.tensor([-0.0])))
    assert torch.equal(bit_patterns(torch.tensor([torch.nan])), bit_patterns(torch.tensor([torch.nan])))


def test_a_file_is_never_the_header_of_one_and_the_data_of_another_while_a_writer_replaces_it(path):
    files = [
        ({"w": torch.full((shape,), float(number))}, {"number": str(number)}) for number, shape in ((1, 3), (2, 7))
    ]
    done = threading.Event()

    def replace_in_turn():
        while not done.is_set():
            for tensors, metadata in files:
                specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
                write_tensors(path, specs, tensors.__getitem__, metadata)

    save_file(*files[0][:1], path, files[0][1])
    writer = threading.Thread(target=replace_in_turn)
    writer.start()
    try:
        seen, end = set(), time.monotonic() + 60
        while seen != {1, 2} and time.monotonic() < end:
            file = TensorFile(path)
            number = int(file.metadata["number"])
            assert same(file["w"], files[number - 1][0]["w"])
            seen.add(number)
    finally:
        done.set()
        writer.join()
    assert seen == {1, 2}


def test_the_header_is_that_of_the_file_that_was_opened(path, monkeypatch):
    save_file({"w": torch.zeros(3)}, path, {"number": "1"})
    opened = os.open

    def open_then_replace(*args):
        descriptor = opened(*args)
        save_file({"w": torch.ones(7)}, path.with_name("new"), {"number": "2"})
        os.replace(path.with_name("new"), path)
        return descriptor

    monkeypatch.setattr(os, "open", open_then_replace)
    file = TensorFile(path)
    assert file.metadata == {"number": "1"} and same(file["w"], torch.zeros(3))


def test_a_few_long_names_make_a_short_message():
    assert first_few(["b", "a"]) == "a, b"
    assert len(first_few(["x" * 400] * 5)) < 400 and first_few(["x" * 400] * 5).endswith(" and 2 more")
