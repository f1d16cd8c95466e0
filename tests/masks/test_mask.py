import json
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from wagle_trl.files.run_folder import MASK_FILE
from wagle_trl.files.tensor_file import LazyTensors
from wagle_trl.masks.anatomy import layer_of, module_of
from wagle_trl.masks.fingerprint import model_fingerprint
from wagle_trl.masks.info import MaskInfo
from wagle_trl.masks.mask import WeightMask

SHAPES = {"model.layers.0.mlp.weight": (3, 5), "model.layers.1.mlp.weight": (4, 4), "model.norm.weight": (7,)}


def random_masks(seed=0, shapes=SHAPES, density=0.4):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) < density for name, shape in shapes.items()}


@pytest.fixture
def mask():
    return WeightMask.from_dense(random_masks(), MaskInfo(score="wagle", seed=0))


@pytest.fixture
def other():
    return WeightMask.from_dense(random_masks(seed=1))


# One bit a weight


def test_a_mask_gives_back_the_bits_it_was_made_from(mask):
    dense = random_masks()
    assert all(torch.equal(mask.dense(name), bits) for name, bits in dense.items())
    assert mask.numel == 15 + 16 + 7
    assert mask.num_selected == sum(int(bits.sum()) for bits in dense.values())
    assert mask.density == mask.num_selected / 38
    assert repr(mask) == f"WeightMask({mask.num_selected} of 38 weights, 3 parameters)"


def test_a_mask_takes_transposed_bits_in_the_order_of_their_rows():
    bits = random_masks()["model.layers.0.mlp.weight"]
    assert torch.equal(WeightMask.from_dense({"w": bits.t()}).dense("w"), bits.t())


def test_one_bit_a_weight_in_numpys_little_order(mask):
    for name, bits in random_masks().items():
        expected = np.packbits(bits.numpy().reshape(-1), bitorder="little")
        assert mask.bits[name].dtype == torch.uint8
        assert np.array_equal(mask.bits[name].numpy(), expected)
        assert len(expected) == -(-bits.numel() // 8)


def test_algebra_is_that_of_the_dense_masks(mask, other):
    for name in SHAPES:
        a, b = mask.dense(name), other.dense(name)
        assert torch.equal((mask & other).dense(name), a & b)
        assert torch.equal((mask | other).dense(name), a | b)
        assert torch.equal((~mask).dense(name), ~a)
    assert (~mask).num_selected == mask.numel - mask.num_selected  # no bits beyond the weights
    assert ~~mask == mask
    assert mask != other
    assert mask != "mask"


def test_jaccard_is_the_overlap_over_the_union(mask, other):
    a, b = (torch.cat([m.dense(name).view(-1) for name in SHAPES]) for m in (mask, other))
    assert mask.jaccard(other) == int((a & b).sum()) / int((a | b).sum())
    assert mask.jaccard(mask) == 1.0
    assert mask.jaccard(~mask) == 0.0
    empty = mask & ~mask
    assert empty.jaccard(empty) == 1.0


@pytest.mark.parametrize("combine", [WeightMask.__and__, WeightMask.__or__, WeightMask.jaccard])
def test_masks_of_other_parameters_do_not_combine(mask, combine):
    fewer = WeightMask.from_dense({"model.norm.weight": torch.ones(7)})
    with pytest.raises(ValueError, match="The two masks cover different parameters"):
        combine(mask, fewer)


def test_density_by_part_of_the_model(mask):
    counts = {name: int(bits.sum()) for name, bits in random_masks().items()}
    first, second, norm = counts.values()
    assert mask.density_by("layer") == {"0": first / 15, "1": second / 16, "-": norm / 7}
    assert mask.density_by("module") == {"mlp.weight": (first + second) / 31, "model.norm.weight": norm / 7}
    assert mask.density_by("parameter") == {name: counts[name] / np.prod(SHAPES[name]) for name in SHAPES}


@pytest.mark.parametrize(
    ("name", "layer", "module"),
    [
        ("model.layers.11.self_attn.q_proj.weight", "11", "self_attn.q_proj.weight"),
        ("transformer.h.0.mlp.c_fc.bias", "0", "mlp.c_fc.bias"),
        ("model.layers.3.mlp.experts.7.up_proj.weight", "3", "mlp.experts.7.up_proj.weight"),
        ("model.embed_tokens.weight", "-", "model.embed_tokens.weight"),
    ],
)
def test_layer_and_module_come_from_the_name(name, layer, module):
    assert (layer_of(name), module_of(name)) == (layer, module)


# Files


@given(
    st.lists(st.lists(st.integers(0, 6), max_size=3), max_size=4).map(lambda shapes: [[2, 5], *shapes]),
    st.integers(0, 99),
)
def test_any_mask_survives_a_file(tmp_path_factory, shapes, seed):
    names = [f"layers.{i}.weight" for i in range(len(shapes))][::-1]
    saved = WeightMask.from_dense(random_masks(seed, dict(zip(names, shapes))), MaskInfo(score="snip"))
    loaded = WeightMask.load(saved.save(tmp_path_factory.mktemp("mask")))
    assert loaded == saved
    assert list(loaded.bits) == names  # model order, not the file's


def test_a_mask_file_carries_its_metadata(mask, tmp_path):
    path = mask.save(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / MASK_FILE
    with safe_open(path, "np") as file:
        header = file.metadata()
        assert {name: file.get_tensor(name).tobytes() for name in SHAPES} == {
            name: np.packbits(bits.numpy().reshape(-1), bitorder="little").tobytes()
            for name, bits in random_masks().items()
        }
    assert header.pop("shapes") == json.dumps(SHAPES)
    assert float(header.pop("density")) == mask.density
    assert header == {"format_version": "1", "k": str(mask.num_selected), "score": "wagle", "seed": "0"}


def test_folder_and_file_name_load_the_same(mask, tmp_path):
    mask.save(tmp_path)
    loaded = WeightMask.load(tmp_path)
    assert loaded == WeightMask.load(tmp_path / MASK_FILE) == mask
    assert loaded.info == MaskInfo(score="wagle", seed=0)
    assert WeightMask.load(loaded.save(tmp_path / "again.safetensors")).info == loaded.info


@pytest.mark.parametrize("step", ["write", "replace"])
def test_an_interrupted_save_leaves_the_old_file_whole(mask, other, tmp_path, monkeypatch, step):
    mask.save(tmp_path)
    before = (tmp_path / MASK_FILE).read_bytes()

    def fail(*args):
        raise KeyboardInterrupt

    if step == "write":
        assert other.density  # counted now, read again below
        other.bits = LazyTensors(
            other.bits, lambda name, bits=other.bits: bits[name] if name in list(bits)[:2] else fail()
        )
    else:
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        other.save(tmp_path)
    assert (tmp_path / MASK_FILE).read_bytes() == before
    assert os.listdir(tmp_path) == [MASK_FILE]


BITS = {"a": torch.tensor([0b101, 0], dtype=torch.uint8), "b": torch.tensor([0b1], dtype=torch.uint8)}
HEADER = {"format_version": "1", "shapes": json.dumps({"a": [3, 4], "b": [5]}), "k": "3"}
SHAPE_MESSAGE = "holds no valid parameter shapes"


def without(key):
    return {k: v for k, v in HEADER.items() if k != key}


def shaped(shape):
    return HEADER | {"shapes": shape if isinstance(shape, str) else json.dumps({"a": shape, "b": [5]})}


BAD_FILES = {
    "wrong popcount": (BITS, HEADER | {"k": "4"}, "the header declares k = '4', the bits select 3"),
    "no count": (BITS, without("k"), "the header declares k = None, the bits select 3"),
    "no version": (BITS, without("format_version"), "not a wagle mask of format version 1"),
    "future version": (BITS, HEADER | {"format_version": "2"}, "not a wagle mask of format version 1"),
    "no header": (BITS, None, "not a wagle mask of format version 1"),
    "no shapes": (BITS, without("shapes"), SHAPE_MESSAGE),
    "pad bits": (BITS | {"a": torch.tensor([0b101, 0b10000], dtype=torch.uint8)}, HEADER, "'a' has mask bits set bey"),
    "too few bytes": (
        BITS | {"a": BITS["b"].clone()},
        HEADER,
        r"'a' of 12 weights needs 2 mask bytes, got \(1,\)",
    ),
    "too many bytes": (BITS | {"b": BITS["a"].clone()}, HEADER, r"'b' of 5 weights needs 1 mask bytes, got \(2,\)"),
    "2-D bytes": (BITS | {"b": BITS["b"].view(1, 1)}, HEADER, r"'b' of 5 weights needs 1 mask bytes, got \(1, 1\)"),
    "0-D bytes": (BITS | {"b": BITS["b"][0]}, HEADER, r"'b' of 5 weights needs 1 mask bytes, got \(\)"),
    "bool bytes": (BITS | {"b": BITS["b"].bool()}, HEADER, r"got \(1,\) of torch.bool"),
    "tensor without shape": (BITS | {"c": BITS["b"].clone()}, HEADER, "name different parameters: c"),
    "shape without tensor": ({"a": BITS["a"]}, HEADER, "name different parameters: b"),
    "negative shape": (BITS, shaped([-3, -4]), SHAPE_MESSAGE),
    "fractional shape": (BITS, shaped([3.0, 4]), SHAPE_MESSAGE),
    "text shape": (BITS, shaped("12"), SHAPE_MESSAGE),
    "text in shape": (BITS, shaped(["3", 4]), SHAPE_MESSAGE),
    "true in shape": (BITS, shaped([True, 12]), SHAPE_MESSAGE),
    "nested shape": (BITS, shaped([[3, 4]]), SHAPE_MESSAGE),
    "null shape": (BITS, shaped(None), SHAPE_MESSAGE),
    "object shape": (BITS, shaped({}), SHAPE_MESSAGE),
    "number shape": (BITS, shaped(12), SHAPE_MESSAGE),
    "infinite shape": (BITS, shaped([float("inf")]), SHAPE_MESSAGE),
    "huge shape": (BITS, shaped([2**40, 2**20]), f"'a' .* needs {2**57} mask bytes"),
    "overflowing shape": (BITS, shaped([2**40, 2**40]), SHAPE_MESSAGE),
    "absurd shape": (BITS, shaped([10**1000] * 100), SHAPE_MESSAGE),
    "many dimensions": (BITS, shaped([10**18] * 1000), SHAPE_MESSAGE),
    "list of shapes": (BITS, shaped("[[3, 4], [5]]"), SHAPE_MESSAGE),
    "broken JSON": (BITS, shaped('{"a": [3, 4'), SHAPE_MESSAGE),
    "deep JSON": (BITS, shaped("[" * 100_000), SHAPE_MESSAGE),
    "endless number": (BITS, shaped('{"a": [' + "9" * 5000 + "]}"), SHAPE_MESSAGE),
}


def test_the_good_file_of_the_bad_ones_loads(tmp_path):
    save_file(BITS, tmp_path / MASK_FILE, HEADER)
    assert WeightMask.load(tmp_path).num_selected == 3


@pytest.mark.parametrize(("bits", "header", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_mask_file_is_refused(bits, header, message, tmp_path):
    save_file(bits, tmp_path / MASK_FILE, header)
    with pytest.raises(ValueError, match=message) as caught:
        WeightMask.load(tmp_path)
    assert str(tmp_path / MASK_FILE) in str(caught.value)
    assert len(str(caught.value)) < 2000


def garbage(kind):
    return {
        "empty": b"",
        "pickle": pickle.dumps({"a": [1, 2, 3]}),
        "text": b"not a mask at all, just text",
        "zeros": bytes(100),
        "endless header": (2**60).to_bytes(8, "little") + b"{}",
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "pickle", "text", "zeros", "endless header"])
def test_a_file_that_is_no_mask_is_refused(kind, tmp_path):
    (tmp_path / MASK_FILE).write_bytes(garbage(kind))
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        WeightMask.load(tmp_path)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "C64", "U16"])
def test_a_file_of_exotic_numbers_is_refused(dtype, tmp_path):
    bits = {"F4": 4, "F6_E2M3": 6, "F8_E8M0": 8, "U16": 16, "C64": 64}[dtype]
    tensors = {"b": {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}}
    header = json.dumps(tensors | {"__metadata__": shaped('{"b": [5]}')}).encode()
    (tmp_path / MASK_FILE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(bits))
    with pytest.raises(ValueError, match=rf"'b' has dtype {dtype}; expected one of"):
        WeightMask.load(tmp_path)


def test_a_truncated_file_is_refused_wherever_it_ends(mask, tmp_path):
    content = mask.save(tmp_path).read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / MASK_FILE).write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"not a readable safetensors file .* it may be truncated"):
            WeightMask.load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"No mask file at {tmp_path / MASK_FILE}; give a {MASK_FILE} or"):
        WeightMask.load(tmp_path)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(FileNotFoundError, match="No mask file at"):
        WeightMask.load(tmp_path / "folder.safetensors")


# Models


def mask_of(model, **info):
    return WeightMask.from_dense({n: torch.rand(p.shape) < 0.1 for n, p in model.named_parameters()}, MaskInfo(**info))


def test_a_mask_fits_its_own_model(tiny_model):
    model = tiny_model()
    mask_of(model, fingerprint=model_fingerprint(model)).check(model)


def test_a_mask_of_other_names_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"names parameters this one lacks: model\.layers\.1\..* and 6 more"):
        mask_of(tiny_model()).check(tiny_model(num_hidden_layers=1))


def test_a_mask_of_other_shapes_is_refused(tiny_model):
    with pytest.raises(
        ValueError, match=r"'model\.embed_tokens\.weight' has shape \(320, 16\) here and \(320, 32\) in"
    ):
        mask_of(tiny_model()).check(tiny_model(hidden_size=16))


def test_a_mask_of_other_weights_is_refused_unless_told_not_to_look(tiny_model):
    mask = mask_of(tiny_model(), fingerprint=model_fingerprint(tiny_model()), base_model="org/base")
    with pytest.raises(
        ValueError, match=r"made for other weights \(fingerprint '\w{16}', this model '\w{16}'\).*'org/base'"
    ):
        mask.check(tiny_model(seed=1))
    mask.check(tiny_model(seed=1), fingerprint=False)


def test_a_mask_moves_to_a_device_whole(mask):
    moved = mask.to("meta")
    assert all(bits.is_meta for bits in moved.bits.values())
    assert (moved.shapes, moved.info) == (mask.shapes, mask.info)
