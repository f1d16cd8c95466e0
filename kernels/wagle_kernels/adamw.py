"""AdamW on the selected weights of many tensors."""

from collections.abc import Sequence

from torch import Tensor

from .backends import Backend, checked_backend
from .layout import Layout


def adamw(
    weights: Sequence[Tensor],
    layout: Layout,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    remainder: Tensor | None = None,
    exp_avg_exponent: Tensor | None = None,
    exp_avg_sq_exponent: Tensor | None = None,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_scale: float = 1.0,
    backend: Backend | None = None,
) -> None:
    """
    Update the selected weights by one step of AdamW (arXiv 1711.05101), in place. The step is computed in fp32.

    Args:
        weights (sequence of `torch.Tensor` of shape `(numel,)`, fp32 or bf16):
            Tensors of the layout, all of one dtype. Unselected elements keep every bit.
        layout ([`Layout`]): Positions of the selected elements.
        grad (`torch.Tensor` of shape `(selected,)`, fp32 or bf16): Gradients.
        exp_avg, exp_avg_sq (`torch.Tensor` of shape `(selected,)`, fp32, or int8 and uint8): First and second moments.
        remainder (`torch.Tensor` of shape `(selected,)`, int16, *optional*):
            Low bits of the fp32 master of each bf16 weight. Without them, updates are rounded to the weights' dtype.
        exp_avg_exponent, exp_avg_sq_exponent (`torch.Tensor` of shape `(groups,)`, uint8, *optional*):
            Scale of each group as an exponent, for moments in 8 bits.
        step (`int`): Number of this step, starting from 1.
        lr, beta1, beta2, eps, weight_decay (`float`): As in `torch.optim.AdamW`.
        grad_scale (`float`, *optional*, defaults to `1.0`): Factor of the gradients, for clipping.
        backend (`str`, *optional*): As in [`score`].
    """
    state = (remainder, exp_avg_exponent, exp_avg_sq_exponent)
    with checked_backend("adamw", backend, *weights, grad, exp_avg, exp_avg_sq, *state) as module:
        module.adamw(
            weights,
            layout,
            grad,
            exp_avg,
            exp_avg_sq,
            remainder=remainder,
            exp_avg_exponent=exp_avg_exponent,
            exp_avg_sq_exponent=exp_avg_sq_exponent,
            step=step,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            grad_scale=grad_scale,
        )
