"""Sums of gradients in fp32."""

from torch import Tensor

from .backends import Backend, checked_backend


def accumulate(total: Tensor, grad: Tensor, *, squared: bool = False, backend: Backend | None = None) -> Tensor:
    """
    Add a gradient, or its square, to a sum, in place.

    Args:
        total (`torch.Tensor` of shape `(numel,)`, fp32): Sum.
        grad (`torch.Tensor` of shape `(numel,)`, fp32, bf16 or fp16): Gradient.
        squared (`bool`, *optional*, defaults to `False`): Whether to add the square of the gradient.
        backend (`str`, *optional*): As in [`score`].

    Returns:
        `torch.Tensor`: `total`.
    """
    with checked_backend("accumulate", backend, total, grad) as module:
        return module.accumulate(total, grad, squared=squared)
