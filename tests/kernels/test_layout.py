"""Layouts, against numpy."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from wagle_kernels import DENSE_GROUP, RANK_GROUP, TILE, Layout
from wagle_kernels import layout as layout_module

from .helpers import DEVICE, make_layout, masks_of, packed_by_numpy

NUMELS = [0, 1, 7, TILE, TILE + 1, 20011, 0]


@pytest.fixture(params=[True, False], ids=["indices", "bits"])
def indexed(request):
    return request.param


@pytest.fixture(params=[TILE, layout_module.CHUNK], ids=["many chunks", "one chunk"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(layout_module, "CHUNK", request.param)


def tiles_of(masks):
    """Every tile as a numpy array, with its tensor."""
    return [(i, part.numpy()) for i, mask in enumerate(masks) if mask.numel() for part in mask.split(TILE)]


def running_total(counts):
    return np.cumsum([0, *counts]).tolist()


@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
def test_tiles_offsets_and_starts_count_what_is_selected(density, indexed, chunk):
    masks = masks_of(density, NUMELS)
    layout = make_layout(masks, indexed=indexed, device=DEVICE)
    tiles = tiles_of(masks)
    assert layout.numels == tuple(NUMELS)
    assert list(layout.tiles) == running_total(-(-numel // TILE) for numel in NUMELS)
    assert list(layout.offsets) == running_total(int(mask.sum()) for mask in masks)
    assert layout.num_selected == sum(int(mask.sum()) for mask in masks)
    assert layout.starts.tolist() == layout.host_starts.tolist() == running_total(tile.sum() for _, tile in tiles)
    assert layout.owners.tolist() == [tensor for tensor, _ in tiles]
    assert layout.first_tiles.tolist() == list(layout.tiles)
    dtypes = {"starts": torch.int64, "groups": torch.int64, "owners": torch.int32, "first_tiles": torch.int32}
    for name, dtype in dtypes.items():
        assert getattr(layout, name).dtype == dtype and getattr(layout, name).device.type == DEVICE.type, name


@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
def test_indices_are_positions_in_the_tile_in_rising_order(density, chunk):
    masks = masks_of(density, NUMELS)
    layout = make_layout(masks, indexed=True, device=DEVICE)
    assert layout.bits is None and layout.indices.dtype == torch.int16
    assert layout.indices.tolist() == [int(i) for _, tile in tiles_of(masks) for i in tile.nonzero()[0]]


@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
def test_bits_are_the_packed_masks_with_every_tile_padded(density, chunk):
    masks = masks_of(density, NUMELS)
    layout = make_layout(masks, indexed=False, device=DEVICE)
    padded = [np.pad(tile, (0, TILE - len(tile))) for _, tile in tiles_of(masks)]
    assert layout.indices is None and layout.bits.dtype == torch.uint8
    assert np.array_equal(layout.bits.cpu().numpy(), packed_by_numpy(np.concatenate(padded)))


@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
def test_groups_lie_in_one_tile_and_are_numbered_through(density, indexed):
    masks = masks_of(density, NUMELS)
    layout = make_layout(masks, indexed=indexed)
    sizes = [-(-tile.sum() // RANK_GROUP) if indexed else TILE // DENSE_GROUP for _, tile in tiles_of(masks)]
    assert layout.groups.tolist() == running_total(sizes)


def test_the_slices_of_the_tensors_partition_their_ranges(indexed):
    layout = make_layout(masks_of(0.2, NUMELS), indexed=indexed)
    for of, total in (
        (layout.selected_of, layout.num_selected),
        (layout.tiles_of, layout.tiles[-1]),
        (layout.groups_of, int(layout.groups[-1])),
    ):
        slices = [of(tensor) for tensor in range(len(NUMELS))]
        assert slices[0].start == 0 and slices[-1].stop == total
        assert all(a.stop == b.start for a, b in pairwise(slices))
        assert all(isinstance(part.start, int) and part.start <= part.stop for part in slices)


@pytest.mark.parametrize(("selected", "is_indexed"), [(0, True), (100, True), (101, False), (1600, False)])
def test_positions_are_indices_up_to_a_sixteenth_selected(selected, is_indexed):
    masks = [torch.arange(1000) < selected // 2, torch.arange(600) < selected - selected // 2]
    if selected == 1600:
        masks = [torch.ones(1000, dtype=torch.bool), torch.ones(600, dtype=torch.bool)]
    layout = make_layout(masks)
    assert layout.num_selected == selected
    assert (layout.indices is not None) == is_indexed and (layout.bits is None) == is_indexed


def test_tensors_without_elements_make_an_empty_layout(indexed):
    layout = make_layout(masks_of(1.0, [0, 0]), indexed=indexed)
    assert layout.tiles == layout.offsets == (0, 0, 0)
    assert layout.starts.tolist() == layout.groups.tolist() == [0]
    assert layout.num_selected == layout.owners.numel() == 0
    assert [layout.groups_of(0), layout.tiles_of(1), layout.selected_of(1)] == [slice(0, 0)] * 3


def test_masks_and_sizes_must_pair_up():
    with pytest.raises(ValueError, match="zip"):
        Layout.of([torch.zeros(1, dtype=torch.uint8)], [8, 8])
