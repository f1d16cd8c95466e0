"""Sums of gradients in fp32: the specification."""

from torch import Tensor

from .chunking import chunks


def accumulate(total: Tensor, grad: Tensor, *, squared: bool = False) -> Tensor:
    """See [`wagle_kernels.accumulate`]."""
    for part in chunks(grad.numel()):
        piece = grad[part].float()
        # The square is rounded first: `addcmul` rounds once on some devices and twice on others
        total[part].add_(piece.square() if squared else piece)
    return total
