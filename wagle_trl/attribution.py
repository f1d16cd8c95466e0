"""Which weights hold what must go, at what cost to what must stay: batches to statistics to a mask.

Knows models and batches, no trainer, so that it can be used alone:

```python
mask, report = compute_mask(model, forget_loader, retain_loader, MaskConfig(mask_score="wagle"))
```
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import wagle_kernels
from wagle_kernels import ScoreSpec

from .mask import WeightMask, model_fingerprint
from .mask_config import MaskConfig
from .report import mask_report, rival_overlaps
from .scores import get_score, parse_gamma, score_scale
from .selection import Scored, select

Batch = dict[str, Tensor]
Batches = Iterable[Batch] | Callable[[], Iterable[Batch]]
SampleLosses = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


def compute_mask(
    model: nn.Module,
    forget: Batches | None,
    retain: Batches | None = None,
    config: MaskConfig | None = None,
    *,
    losses: SampleLosses | None = None,
    progress: bool = True,
) -> tuple[WeightMask, dict[str, Any]]:
    """
    Attribute, select and report.

    Args:
        model (`torch.nn.Module`): Model at the weights to unlearn from; left as it was.
        forget, retain (iterable of batches, or a callable that returns one):
            Batches of `input_ids`, `attention_mask` and `labels` (`-100` outside the answers). Read only if the score
            needs them.
        config ([`MaskConfig`], *optional*): Score, density and scope.
        losses (callable, *optional*, defaults to [`sample_losses`]):
            `(model, batch)` to the token-mean loss and the number of answer tokens of every sample, both `(batch,)`.
        progress (`bool`, *optional*, defaults to `True`): Whether to show progress bars.

    Returns:
        `tuple[WeightMask, dict]`: The mask, and its report as [`~report.mask_report`] makes it.
    """
    config = config or MaskConfig()
    score, gamma = get_score(config.mask_score), parse_gamma(config.mask_gamma)
    parameters = scope_parameters(model, config.mask_scope, config.mask_exclude)
    official = score.formula == "wagle" and gamma == "official"

    def statistic(batches: Batches | None, stream: str) -> dict[str, Tensor]:
        if batches is None:
            raise ValueError(
                f"mask_score '{config.mask_score}' needs {stream} data; pass some or choose another score."
            )
        return accumulate_statistic(
            model,
            parameters,
            batches,
            squared=score.statistic == "fisher",
            sum_batches=official,
            losses=losses or sample_losses,
            description=f"Attributing the {stream} set" if progress else None,
        )

    forget_statistic = statistic(forget, "forget") if score.statistic else None
    retain_statistic = statistic(retain, "retain") if score.uses_retain else None
    scale = score_scale(
        score,
        gamma,
        config.mask_eps,
        mean_theta=_mean_abs(parameters.values()),
        mean_retain=_mean_abs(retain_statistic.values()) if retain_statistic else 0.0,
    )
    spec = ScoreSpec(score.formula, scale, config.mask_seed)
    scored = Scored(parameters, spec, forget_statistic, retain_statistic)
    mask = select(scored, config.mask_density, _info(model, config, scale))
    if score.statistic == "fisher":
        _to_root_mean_square(forget_statistic, retain_statistic)
    mask.info["jaccard"] = json.dumps(rival_overlaps(mask, scored))
    return mask, mask_report(mask)


def scope_parameters(
    model: nn.Module, include: list[str] | None = None, exclude: list[str] | None = None
) -> dict[str, nn.Parameter]:
    """
    Trainable parameters that a mask may select from, in model order; tied weights once, under their first name.

    Args:
        model (`torch.nn.Module`): Model.
        include (`list[str]`, *optional*): Glob patterns; by default everything but embeddings and LM head.
        exclude (`list[str]`, *optional*): Glob patterns to leave out.
    """
    aliases: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(parameter, []).append(name)
    outside = set() if include else embedding_parameters(model)

    def matches(parameter: nn.Parameter, patterns: list[str] | None) -> bool:
        return any(fnmatch(name, pattern) for name in aliases[parameter] for pattern in patterns or [])

    chosen = {
        names[0]: parameter
        for parameter, names in aliases.items()
        if parameter.requires_grad
        and parameter.numel()
        and parameter not in outside
        and (not include or matches(parameter, include))
        and not matches(parameter, exclude)
    }
    if not chosen:
        raise ValueError(
            f"No trainable parameter is in scope: mask_scope {include}, mask_exclude {exclude}; the model has names "
            f"like '{next(iter(aliases.values()))[0]}'."
        )
    return chosen


def embedding_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Weights of token and position embeddings and of the LM head."""
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if hasattr(model, "get_output_embeddings"):  # transformers models; a plain module has no LM head to ask for
        modules.append(model.get_output_embeddings())
    return {parameter for module in modules if module is not None for parameter in module.parameters()}


def sample_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """
    Token-mean cross-entropy of every sample's answer, and its number of answer tokens.

    Args:
        model (`torch.nn.Module`): Causal language model that returns `logits` of shape `(batch, length, vocab)`.
        batch (`dict`): `input_ids` and `labels` of shape `(batch, length)`, and what else the model takes.
    """
    labels = batch["labels"][:, 1:]
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1].float()
    token_losses = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return per_sample_mean(token_losses, labels != -100)


def per_sample_mean(token_losses: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of `token_losses` over the `answer` tokens of each row, and their number; an empty row is an error."""
    num_tokens = answer.sum(1)
    if (num_tokens == 0).any():
        raise ValueError(f"Row {int((num_tokens == 0).nonzero()[0])} of a batch has no answer tokens.")
    return (token_losses * answer).sum(1) / num_tokens, num_tokens


def accumulate_statistic(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Batches,
    *,
    squared: bool = False,
    sum_batches: bool = False,
    losses: SampleLosses = sample_losses,
    description: str | None = None,
) -> dict[str, Tensor]:
    """
    Mean over samples of the gradient of each sample's token-mean loss, or of its square, in eval mode.

    Every sample weighs the same, so the result does not depend on the batch size.

    Args:
        model (`torch.nn.Module`): Model; its training mode, `requires_grad` flags and gradients are restored.
        parameters (`dict[str, torch.nn.Parameter]`): Parameters to differentiate for.
        batches: As in [`compute_mask`].
        squared (`bool`, *optional*, defaults to `False`):
            Average squared per-sample gradients (the diagonal of the empirical Fisher information).
        sum_batches (`bool`, *optional*, defaults to `False`):
            Instead sum, over batches, the gradient of the mean loss over all answer tokens of a batch, as the
            published WAGLE code does.
        losses (callable): As in [`compute_mask`].
        description (`str`, *optional*): Label of the progress bar; none is shown without it.

    Returns:
        `dict[str, torch.Tensor]`: fp32 statistic of each parameter's shape.
    """
    totals = {name: torch.zeros(p.shape, dtype=torch.float32, device=p.device) for name, p in parameters.items()}
    device = next(iter(parameters.values())).device
    batches = batches() if callable(batches) else batches
    num_samples = 0
    with _differentiating(model, parameters, totals, squared), torch.enable_grad():
        for batch in tqdm(batches, desc=description, unit="batch", disable=description is None):
            batch = {key: value.to(device) for key, value in batch.items()}
            for part in _single_rows(batch) if squared else (batch,):
                means, num_tokens = losses(model, part)
                loss = (means * num_tokens).sum() / num_tokens.sum() if sum_batches else means.sum()
                loss.backward()
                num_samples += len(means)
    if num_samples == 0:
        raise ValueError("No batches to attribute: the data set is empty.")
    for name, total in totals.items():
        if not sum_batches:
            total /= num_samples
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
        wagle_kernels.accumulate(total, parameter.grad.reshape(-1), squared=squared)
        parameter.grad = None

    return hook


def _single_rows(batch: Batch) -> Iterator[Batch]:
    """One row at a time, without the padding that the longer rows of the batch made necessary."""
    for i in range(len(batch["input_ids"])):
        row = {key: value[i : i + 1] for key, value in batch.items()}
        if "attention_mask" in row:
            kept = row["attention_mask"][0].bool()
            row = {key: value[:, kept] if value.shape[1:] == kept.shape else value for key, value in row.items()}
        yield row


def _refuse_non_finite(name: str, statistic: Tensor) -> None:
    if not all(bound.isfinite() for bound in statistic.aminmax()):
        raise ValueError(
            f"The gradient of '{name}' is NaN or infinite; load the model in bfloat16 or float32 and check the data."
        )


def _mean_abs(tensors: Iterable[Tensor]) -> float:
    total = numel = 0
    for tensor in tensors:
        numel += tensor.numel()
        for piece in tensor.detach().reshape(-1).split(wagle_kernels.CHUNK):
            total += float(piece.float().abs().sum(dtype=torch.float64))
    return total / numel


def _to_root_mean_square(*statistics: Mapping[str, Tensor]) -> None:
    """Fisher to the scale of a gradient, in place, for the overlaps with gradient scores."""
    for statistic in statistics:
        for tensor in statistic.values():
            tensor.sqrt_()


def _info(model: nn.Module, config: MaskConfig, scale: float) -> dict[str, str]:
    info = {
        "score": config.mask_score,
        "scale": repr(scale),
        "gamma": config.mask_gamma,
        "eps": repr(config.mask_eps),
        "seed": str(config.mask_seed),
        "scope": json.dumps(config.mask_scope),
        "exclude": json.dumps(config.mask_exclude),
        "fingerprint": model_fingerprint(model),
        "versions": json.dumps({name: version(name) for name in ("wagle-trl", "torch", "transformers")}),
    }
    if hasattr(model, "config"):  # a plain module has no name
        info["base_model"] = model.config._name_or_path
        info["base_revision"] = str(getattr(model.config, "_commit_hash", None))
    return info
