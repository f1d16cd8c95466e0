"""Reading and writing of the selected values of a tensor."""

import torch
from torch import Tensor

import wagle_kernels
from wagle_kernels import Layout


def take(weights: Tensor, bits: Tensor) -> Tensor:
    """
    Read the selected values of a tensor.

    Args:
        weights (`torch.Tensor` of any shape): Tensor.
        bits (`torch.Tensor` of shape `(ceil(numel / 8),)`, uint8): Packed mask.

    Returns:
        `torch.Tensor` of shape `(selected,)`, in rising flat order, of the dtype of `weights`.
    """
    flat = _indexable(weights.detach().reshape(-1))
    layout = Layout.of([bits.to(flat.device)], [flat.numel()])
    return wagle_kernels.compress(flat, layout, 0, flat.new_empty(layout.num_selected)).view(weights.dtype)


def put(weights: Tensor, bits: Tensor, values: Tensor) -> Tensor:
    """Write `values` to the selected elements of a contiguous tensor, in place. Unselected elements keep every bit."""
    flat = _indexable(weights.detach().view(-1))
    layout = Layout.of([bits.to(flat.device)], [flat.numel()])
    wagle_kernels.scatter(flat, layout, 0, _indexable(values.to(flat.device)))
    return weights


def _indexable(values: Tensor) -> Tensor:
    """View 8-bit floats, which torch cannot index, as bytes."""
    return values.view(torch.uint8) if values.dtype.itemsize == 1 else values
