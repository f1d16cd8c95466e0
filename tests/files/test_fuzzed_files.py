"""Files changed anywhere, in any way: either a clear error, or an object that is all that it says."""

import json
import tracemalloc
from contextlib import contextmanager

import pytest

from wagle_trl.attribution.report import mask_report, plot_mask, report_tables
from wagle_trl.hub.card import model_card
from wagle_trl.memory.allocations import Allocations

from ..support.deltas import same_weights
from ..support.fuzzing import (
    PARTS,
    anything,
    as_json,
    changed_bytes,
    changed_tree,
    check_lines,
    check_shown,
    fuzz,
    is_accepted,
    text,
)
from ..support.hostile import FILES, KINDS, base_model, check_error, join, opened, sound, split


@pytest.fixture(scope="module", autouse=True)
def opened_once(tmp_path_factory):
    """What the first use imports is not the memory of a file."""
    folder = tmp_path_factory.mktemp("first")
    for kind, name in FILES.items():
        (folder / name).write_bytes(sound(kind))
        with Allocations():
            opened(kind, folder)


def examples(kind, folder):
    path = folder / FILES[kind]

    def open_and_check(random):
        if random.random() < 0.1:  # counting takes long
            with little_memory():
                found = opened(kind, folder)
        else:
            found = opened(kind, folder)
        {"mask": check_mask, "delta": check_delta, "model": check_model}[kind](found)
        if kind != "model" and random.random() < 0.02:
            check_shown(*report_tables(mask_report(found.selection)))
            check_lines(str(model_card(folder, what=kind)))
        if kind == "mask" and random.random() < 0.002:
            plot_mask(found, folder / "mask.png")

    def example(random):
        path.write_bytes(changed(kind, random))
        return is_accepted(lambda: open_and_check(random), path)

    return example


def changed(kind, random):
    """The sound file, changed as bytes, as a header, or in what its header says of it."""
    header, data = split(sound(kind))
    match random.randrange(3 if kind == "model" else 4):
        case 0:
            return changed_bytes(sound(kind), random)
        case 1:
            return join(as_json(changed_tree(header, random)), data)
        case 2:
            twice = f", {json.dumps(random.choice([*header]))}: {json.dumps(anything(random))}}}"
            return join(as_json(header)[:-1] + twice.encode(), data)
    metadata = header["__metadata__"]
    name = random.choice([*metadata, "jaccard", "versions", "score", "base_model"])
    if name in ("shapes", "dtypes"):
        metadata[name] = json.dumps(changed_tree(json.loads(metadata[name]), random))
    else:
        metadata[name] = random.choice([text(random), json.dumps(anything(random)), str(random.randrange(-9, 99))])
    return join(header, data)


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


@KINDS
@PARTS
def test_a_file_changed_anywhere_does_no_harm(kind, part, record_property):
    fuzz(kind, part, lambda folder: examples(kind, folder), record_property)
