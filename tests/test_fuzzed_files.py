"""Files changed anywhere, in any way: either a clear error, or an object that is all that it says."""

import copy
import json
import tracemalloc
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wagle_trl.allocations import Allocations

from .deltas import same_weights
from .hostile import CLEAR_SCREEN, FILES, KINDS, base_model, check_error, join, opened, sound, split


@pytest.fixture(scope="module", autouse=True)
def opened_once(tmp_path_factory):
    """What the first use imports is not the memory of a file."""
    folder = tmp_path_factory.mktemp("first")
    for kind, name in FILES.items():
        (folder / name).write_bytes(sound(kind))
        with Allocations():
            opened(kind, folder)


def examine(kind, content, folder):
    (folder / FILES[kind]).write_bytes(content)
    try:
        with little_memory():
            found = opened(kind, folder)
    except (ValueError, OSError) as error:
        check_error(error)
    else:
        {"mask": check_mask, "delta": check_delta, "model": check_model}[kind](found)


@contextmanager
def little_memory(limit=2**25):
    """Tensors and Python's own objects take less than `limit` bytes inside."""
    tracemalloc.start()
    try:
        with Allocations() as memory:
            yield
    finally:
        peak = memory.peak + tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < limit


def check_mask(mask):
    for name, shape in mask.shapes.items():
        dense = mask.dense(name)
        assert dense.shape == shape and int(dense.sum()) == mask.num_selected_of(name)
    assert sum(map(mask.num_selected_of, mask.bits)) == mask.num_selected
    assert 0 <= mask.density <= 1 and all(0 <= share <= 1 for share in mask.density_by("layer").values())


def check_delta(delta):
    check_mask(delta.mask)
    for values in (delta.new, delta.old or {}):
        for name, tensor in values.items():
            assert tensor.shape == (delta.mask.num_selected_of(name),)
            assert tensor.dtype == delta.dtypes[name]
    assert repr(delta).isprintable() and delta.dtype
    model = base_model()
    try:
        delta.apply(model)
    except ValueError as error:
        check_error(error)
        assert same_weights(model, base_model())


def check_model(checkpoint):
    for name in checkpoint:
        tensor = checkpoint[name]
        assert tensor.shape == checkpoint.shape(name) and tensor.dtype == checkpoint.dtype(name)


fuzz = settings(max_examples=120, deadline=None, derandomize=True)
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.sampled_from([2**31, 2**60, 2**63 - 1, 2**64, -(2**63), 10**30, 0.5, 1e308, ""])
    | st.sampled_from(["F32", "BF16", "U8", "F99", "gaps:a", "new:a", "a", "b", CLEAR_SCREEN])
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def places(tree):
    """Every place in a tree of lists and objects, as the container and the key."""
    found = []
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        found.append((tree, key))
        if isinstance(value, dict | list):
            found += places(value)
    return found


def mutate(tree, draw):
    """Replace, remove, rename or swap some nodes of a tree, in place."""
    for _ in range(draw(st.integers(1, 3))):
        found = places(tree)
        if not found:
            return
        container, key = draw(st.sampled_from(found))
        how = draw(st.sampled_from(["replace", "remove", "rename", "swap"]))
        if how == "replace":
            container[key] = draw(ANY_JSON)
        elif how == "remove":
            del container[key]
        elif how == "rename" and isinstance(container, dict):
            name = draw(st.text(max_size=5) | st.sampled_from(["a", "b", "new:b", "gaps:b", "bits:a"]))
            container[name] = container.pop(key)
        else:
            other, place = draw(st.sampled_from(found))
            value = copy.deepcopy(container[key])
            container[key], other[place] = copy.deepcopy(other[place]), value


@KINDS
@fuzz
@given(data=st.data())
def test_bytes_changed_anywhere_do_no_harm(kind, data, tmp_path_factory):
    content = bytearray(sound(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        removed = data.draw(st.sampled_from([0, 1, 1, 1, 8, 100]))
        content[start : start + removed] = data.draw(st.binary(max_size=4))
    examine(kind, bytes(content), tmp_path_factory.mktemp("fuzz"))


@KINDS
@fuzz
@given(data=st.data())
def test_a_header_changed_anywhere_does_no_harm(kind, data, tmp_path_factory):
    header, rest = split(sound(kind))
    mutate(header, data.draw)
    text = json.dumps(header).encode()
    if data.draw(st.booleans()) and text.endswith(b"}") and len(text) > 2:  # a key twice
        key = json.dumps(data.draw(st.sampled_from([*split(sound(kind))[0]])))
        text = text[:-1] + f", {key}: {json.dumps(data.draw(ANY_JSON))}}}".encode()
    examine(kind, join(text, rest), tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", ["mask", "delta"])
@fuzz
@given(data=st.data())
def test_metadata_changed_anywhere_does_no_harm(kind, data, tmp_path_factory):
    header, rest = split(sound(kind))
    metadata = header["__metadata__"]
    key = data.draw(st.sampled_from([*metadata]))
    if key in ("shapes", "dtypes"):
        tree = json.loads(metadata[key])
        mutate(tree, data.draw)
        metadata[key] = json.dumps(tree)
    else:
        metadata[key] = data.draw(st.text(max_size=20) | st.integers().map(str))
    examine(kind, join(header, rest), tmp_path_factory.mktemp("fuzz"))
