"""AdamW on the selected weights of many tensors: the specification."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import Layout
from ..spec import join_split, split
from .compaction import Block, blocks, put
from .eight_bit import decode_signed, decode_unsigned, encode_signed, encode_unsigned, exponent_above, random_bits


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
) -> None:
    """See [`wagle_kernels.adamw`]."""
    options = dict(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, step=step)
    for block in blocks(layout, slice(0, layout.tiles[-1])):
        part = block.selected
        if part.start == part.stop:
            continue
        positions = block.positions()
        g = grad[part].float() if grad_scale == 1 else grad[part].float() * grad_scale
        gathered = _gather(weights, block, positions)
        master = gathered.float() if remainder is None else join_split(gathered, remainder[part])
        if exp_avg_exponent is None:
            _update(master, g, exp_avg[part], exp_avg_sq[part], **options)
        else:
            assert exp_avg_sq_exponent is not None  # either both moments have 8 bits or neither
            groups = block.group_of_each(positions)
            m = decode_signed(exp_avg[part], exp_avg_exponent[groups])
            v = decode_unsigned(exp_avg_sq[part], exp_avg_sq_exponent[groups])
            _update(master, g, m, v, **options)
            random = random_bits(part.start, part.stop - part.start, step, grad.device)
            exp_avg[part] = encode_signed(m, _update_exponents(exp_avg_exponent, groups, m.abs()))
            exp_avg_sq[part] = encode_unsigned(v, _update_exponents(exp_avg_sq_exponent, groups, v), random)
        if remainder is None:
            updated = master.to(gathered.dtype)
        else:
            updated, low = split(master)
            remainder[part] = low
        for tensor, piece, indices in block.by_tensor(positions):
            put(weights[tensor], indices, updated[piece])


def _gather(weights: Sequence[Tensor], block: Block, positions: Tensor) -> Tensor:
    gathered = torch.empty(len(positions), dtype=weights[0].dtype, device=positions.device)
    for tensor, piece, indices in block.by_tensor(positions):
        torch.index_select(weights[tensor], 0, indices, out=gathered[piece])
    return gathered


def _update(master, g, m, v, *, step, lr, beta1, beta2, eps, weight_decay) -> None:
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    denominator = v.sqrt().div_((1 - beta2**step) ** 0.5).add_(eps)
    master.mul_(1 - lr * weight_decay).addcdiv_(m, denominator, value=-lr / (1 - beta1**step))


def _update_exponents(exponents: Tensor, groups: Tensor, values: Tensor) -> Tensor:
    """Set the exponents of the values' groups, which must be complete, and return the exponent of each value."""
    first, last = int(groups[0]), int(groups[-1]) + 1
    largest = values.new_zeros(last - first).scatter_reduce_(0, groups - first, values, "amax")
    exponents[first:last] = exponent_above(largest)
    return exponents[groups]
