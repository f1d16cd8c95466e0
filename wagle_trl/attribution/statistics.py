"""Batches to a statistic of every weight: the mean gradient of a sample's loss, or of its square."""

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
    Mean over samples of the gradient of each sample's token-mean loss, or of its square, in eval mode.

    Every sample weighs the same, so the result does not depend on the batch size. A gradient is added up and freed as
    soon as the backward pass completes it.

    Args:
        model (`torch.nn.Module`): Model; its training mode, `requires_grad` flags and gradients are restored.
        parameters (`dict[str, torch.nn.Parameter]`): Parameters to differentiate for.
        batches (iterable of batches): As in [`~attribution.compute_mask`].
        squared (`bool`, *optional*, defaults to `False`):
            Average squared per-sample gradients (the diagonal of the empirical Fisher information).
        sum_batches (`bool`, *optional*, defaults to `False`):
            Instead sum, over batches, the gradient of the mean loss over all answer tokens of a batch, as the
            published WAGLE code does.
        losses (callable): As in [`~attribution.compute_mask`].
        gradient_checkpointing (`bool`, *optional*, defaults to `False`):
            Recompute every transformer layer in the backward pass instead of keeping its activations.
        device (`torch.device`, *optional*): Where the statistic is added up; by default where each parameter is.

    Returns:
        `dict[str, torch.Tensor]`: fp32 statistic of each parameter's shape.
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
                _refuse_empty(num_tokens)
                loss = (means * num_tokens).sum() / num_tokens.sum() if sum_batches else means.sum()
                if loss.requires_grad:  # a loss may use none of the parameters, of which there can be few
                    loss.backward()
                num_samples += len(means)
    if num_samples == 0:
        raise ValueError("No batches to attribute: the data set is empty.")
    for name, total in totals.items():
        if not sum_batches:
            total *= 1 / num_samples  # not divided: CUDA would multiply, a CPU not, and bits could differ
        _refuse_non_finite(name, total)
    return totals


@contextmanager
def _differentiating(model, parameters, totals, squared) -> Iterator[None]:
    """Eval mode, gradients for `parameters` alone, each added to its total and freed as soon as it is complete."""
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
        assert parameter.grad is not None  # it was just added up
        wagle_kernels.accumulate(total, parameter.grad.reshape(-1).to(total.device), squared=squared)
        parameter.grad = None

    return hook


def _refuse_empty(num_tokens: Tensor) -> None:
    if (num_tokens == 0).any():
        raise ValueError(f"Row {int((num_tokens == 0).nonzero()[0])} of a batch has no answer tokens.")


def _refuse_non_finite(name: str, statistic: Tensor) -> None:
    if not all(bound.isfinite() for bound in statistic.aminmax()):
        raise ValueError(
            f"The gradient of '{name}' is NaN or infinite; load the model in bfloat16 or float32 and check the data."
        )
