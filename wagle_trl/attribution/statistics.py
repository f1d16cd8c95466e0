"""Statistics of every weight: over the samples, the mean gradient of the loss or the mean squared gradient."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import wagle_kernels

from ..losses.per_sample import Batch, SampleLosses, sample_losses, single_rows
from ..memory.checkpointing import checkpointed_layers


def accumulate_statistic(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[Batch],
    *,
    squared: bool = False,
    sum_batches: bool = False,
    losses: SampleLosses = sample_losses,
    gradient_checkpointing: bool = False,
    device: torch.device | str | None = None,
) -> dict[str, Tensor]:
    """
    Compute the gradient of each sample's token-mean loss in eval mode, and average it, or its square, over the samples.

    Every sample has the same weight, so the result does not depend on the batch size. A gradient is added up and freed
    as soon as the backward pass completes it.

    Args:
        model (`torch.nn.Module`): Model; its training mode, `requires_grad` flags and gradients are restored.
        parameters (`dict[str, torch.nn.Parameter]`): Parameters to compute the statistic for.
        batches (iterable of batches): As in [`~attribution.compute_mask`].
        squared (`bool`, *optional*, defaults to `False`):
            Average the squared per-sample gradients. This is the diagonal of the empirical Fisher information.
        sum_batches (`bool`, *optional*, defaults to `False`):
            Sum the gradients of all batches instead of averaging over samples. The loss of a batch is then the mean
            over all its answer tokens, as in the published WAGLE code.
        losses (callable): As in [`~attribution.compute_mask`].
        gradient_checkpointing (`bool`, *optional*, defaults to `False`):
            Recompute every transformer layer in the backward pass instead of keeping its activations.
        device (`torch.device`, *optional*): Device of the statistic; by default that of each parameter.

    Returns:
        `dict[str, torch.Tensor]`: fp32 statistic of every parameter, in its shape.
    """
    totals = {
        name: torch.zeros(p.shape, dtype=torch.float32, device=device or p.device) for name, p in parameters.items()
    }
    model_device = next(iter(parameters.values())).device
    num_samples = 0
    with (
        _differentiating(model, parameters, totals, squared),
        checkpointed_layers(model, gradient_checkpointing),
        torch.enable_grad(),
    ):
        for batch in batches:
            batch = {key: value.to(model_device) for key, value in batch.items()}
            for part in single_rows(batch) if squared else (batch,):
                means, num_tokens = losses(model, part)
                if (num_tokens == 0).any():
                    raise ValueError(f"Row {int((num_tokens == 0).nonzero()[0])} of a batch has no answer tokens.")
                loss = (means * num_tokens).sum() / num_tokens.sum() if sum_batches else means.sum()
                if loss.requires_grad:  # one sweep may cover few parameters, and the loss may use none of them
                    loss.backward()
                num_samples += len(means)
    if num_samples == 0:
        raise ValueError("No batches to attribute: the data set is empty.")
    for name, total in totals.items():
        if not sum_batches:
            total *= 1 / num_samples  # CUDA divides by multiplying: so do we, to get the same bits on a CPU
        _check_finite(name, total)
    return totals


@contextmanager
def _differentiating(model, parameters, totals, squared) -> Iterator[None]:
    """Eval mode with gradients for `parameters` alone. Each gradient is added to its total, and freed when complete."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    gradients = {parameter: parameter.grad for parameter in parameters.values()}
    modes = {module: module.training for module in model.modules()}
    hooks = [
        parameter.register_post_accumulate_grad_hook(_release_into(totals[name].view(-1), squared))
        for name, parameter in parameters.items()
    ]
    for parameter in flags:
        parameter.requires_grad_(parameter in gradients)
        parameter.grad = None if parameter in gradients else parameter.grad
    model.eval()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for module, training in modes.items():
            module.training = training


def _release_into(total: Tensor, squared: bool) -> Callable[[nn.Parameter], None]:
    def hook(parameter: nn.Parameter) -> None:
        assert parameter.grad is not None  # torch has just accumulated it
        wagle_kernels.accumulate(total, parameter.grad.reshape(-1).to(total.device), squared=squared)
        parameter.grad = None

    return hook


def _check_finite(name: str, statistic: Tensor) -> None:
    if not all(bound.isfinite() for bound in statistic.aminmax()):
        raise ValueError(
            f"The gradient of '{name}' is NaN or infinite; load the model in bfloat16 or float32 and check the data."
        )
