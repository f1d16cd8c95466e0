"""Values of the selected elements, from dense tensors into compact ones and back."""

from torch import Tensor

from .backends import Backend, checked_backend
from .layout import Layout


def compress(
    dense: Tensor,
    layout: Layout,
    tensor: int,
    out: Tensor,
    *,
    accumulate: bool = False,
    squares: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """
    Gather the selected elements of a tensor into `out`, in rising flat order.

    Args:
        dense (`torch.Tensor` of shape `(numel,)`): Values, for example a gradient.
        layout ([`Layout`]): Positions of the selected elements.
        tensor (`int`): Index of the tensor in the layout.
        out (`torch.Tensor` of shape `(selected of the tensor,)`): Target, written in place in its own dtype.
        accumulate (`bool`, *optional*, defaults to `False`): Add to `out` instead of overwriting it.
        squares (`torch.Tensor` of shape `(tiles of the tensor,)`, fp32, *optional*):
            Overwritten with partial sums of the squares of `out`.
        backend (`str`, *optional*): As in [`score`].

    Returns:
        `torch.Tensor`: `out`.
    """
    with checked_backend("compress", backend, dense, out, squares) as module:
        return module.compress(dense, layout, tensor, out, accumulate=accumulate, squares=squares)


def scatter(dense: Tensor, layout: Layout, tensor: int, compact: Tensor, *, backend: Backend | None = None) -> Tensor:
    """
    Write `compact` to the selected elements of a tensor, in place. Unselected elements keep every bit.

    Args:
        dense (`torch.Tensor` of shape `(numel,)`): Target.
        layout ([`Layout`]): Positions of the selected elements.
        tensor (`int`): Index of the tensor in the layout.
        compact (`torch.Tensor` of shape `(selected of the tensor,)`): Values, in rising flat order.
        backend (`str`, *optional*): As in [`score`].

    Returns:
        `torch.Tensor`: `dense`.
    """
    with checked_backend("scatter", backend, dense, compact) as module:
        return module.scatter(dense, layout, tensor, compact)
