"""Gradients added up in fp32."""

from torch import Tensor

from .chunking import chunks


def accumulate(total: Tensor, grad: Tensor, *, squared: bool = False) -> Tensor:
    """Add `grad` (or its square) to the fp32 `total`, in place. Both of shape `(numel,)`."""
    for part in chunks(grad.numel()):
        piece = grad[part].float()
        total[part].addcmul_(piece, piece) if squared else total[part].add_(piece)
    return total
