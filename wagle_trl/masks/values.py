"""The values of a tensor's selected weights: out of it, and back into it."""

import torch
from torch import Tensor

import wagle_kernels
from wagle_kernels import Layout


def take(weights: Tensor, bits: Tensor) -> Tensor:
    """
    Selected values of a tensor.

    Args:
        weights (`torch.Tensor`): Tensor of any shape.
        bits (`torch.Tensor` of shape `(ceil(numel / 8),)`, uint8): Packed mask.

    Returns:
        `torch.Tensor` of shape `(selected,)`, in rising flat order, of the dtype of `weights`.
    """
    flat = _indexable(weights.detach().reshape(-1))
    layout = Layout.of([bits.to(flat.device)], [flat.numel()])
    return wagle_kernels.compress(flat, layout, 0, flat.new_empty(layout.num_selected)).view(weights.dtype)


def put(weights: Tensor, bits: Tensor, values: Tensor) -> Tensor:
    """Write `values` to the selected elements of a contiguous tensor, in place; every other bit stays."""
    flat = _indexable(weights.detach().view(-1))
    layout = Layout.of([bits.to(flat.device)], [flat.numel()])
    wagle_kernels.scatter(flat, layout, 0, _indexable(values.to(flat.device)))
    return weights


def _indexable(values: Tensor) -> Tensor:
    """The same memory as bytes where torch cannot index it: floats of 8 bits."""
    return values.view(torch.uint8) if values.dtype.itemsize == 1 else values
