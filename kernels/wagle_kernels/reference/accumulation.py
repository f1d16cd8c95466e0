"""Gradients added up in fp32."""

from torch import Tensor

from .chunking import chunks


def accumulate(total: Tensor, grad: Tensor, *, squared: bool = False) -> Tensor:
    """See [`wagle_kernels.accumulate`]."""
    for part in chunks(grad.numel()):
        piece = grad[part].float()
        # Squared first: `addcmul` may round once on one device and twice on another
        total[part].add_(piece.square() if squared else piece)
    return total
