"""Tensors at addresses that a kernel must reach: on the device, beside an aligned one, beyond 32 bits."""

import mmap

import torch

from wagle_kernels import TILE, Layout

from ..helpers import DEVICE, make_layout

FAR = 2**32  # an offset of 32 bits would wrap to 0, where there is memory: the result is wrong, nothing crashes
LONG = 2**31 + 3 * TILE + 1001  # elements of a tensor that is long enough to wrap


def aligned(tensor):
    """A copy on the device."""
    return tensor.to(DEVICE, copy=True)


def misaligned(tensor):
    """The same numbers on the device, one element beyond an aligned address."""
    return torch.cat([tensor.new_zeros(1), tensor]).to(DEVICE)[1:]


def on_device(values):
    return [None if value is None else aligned(value) for value in values]


def far(numel, dtype=torch.float32):
    """A tensor of zeros that takes memory only where it is written."""
    size = numel * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE, which Python 3.11 has no name for
    return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=dtype)


def far_copy(values):
    """A tensor that ends in `values`, after `FAR` zeros."""
    tensor = far(FAR + values.numel(), values.dtype)
    tensor[FAR:] = values
    return tensor


def far_layout(mask, coding):
    """Layout of one tensor that ends in `mask`, in its last tile, behind `FAR` others; and that of the end alone."""
    near = make_layout([mask], indexed=coding == "indices")
    tiles, selected = FAR // TILE + 1, near.num_selected
    groups = torch.full((tiles + 1,), FAR // 64)
    groups[-1] += near.groups[-1]
    starts = torch.full((tiles + 1,), FAR)
    starts[-1] += selected
    if coding == "indices":
        positions = dict(bits=None, indices=far_copy(near.indices))
    else:
        bits = far(tiles * TILE // 8, torch.uint8)
        bits[-TILE // 8 :] = near.bits
        groups = torch.arange(tiles + 1) * int(near.groups[-1])
        positions = dict(bits=bits, indices=None)
    layout = Layout(
        numels=(FAR + mask.numel(),),
        tiles=(0, tiles),
        offsets=(0, FAR + selected),
        starts=starts,
        groups=groups,
        owners=torch.zeros(tiles, dtype=torch.int32),
        first_tiles=torch.tensor([0, tiles], dtype=torch.int32),
        **positions,
    )
    return near, layout


def far_masks(numel):
    """Mask bits and counts of tiles for `FAR + numel` elements."""
    packed = far(FAR // 8 + (numel + 7) // 8, torch.uint8)
    return packed, torch.zeros(FAR // TILE + (numel + TILE - 1) // TILE, dtype=torch.int32)
