"""Drift of a model from its base: the divergence of its predictions, KL(base || model), and the share of changed weights."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from ..files.tensor_file import bit_patterns
from ..masks.anatomy import layer_of
from .inference import LOWEST_LOG_PROB, Tokenized, answer_logits, inference


class ChangedWeights(NamedTuple):
    """
    Result of [`weights_changed`].

    Attributes:
        share (`float`): Share of all weights that changed, from `0.0` to `1.0`.
        by_layer (`dict[str, float]`): The same by number of the layer, or `"-"` for weights outside the layers.
    """

    share: float
    by_layer: dict[str, float]


def check_same_weights(model: PreTrainedModel, base: PreTrainedModel) -> None:
    """Raise a `ValueError` unless both models have parameters of the same names and shapes."""
    shapes, others = ({name: tuple(p.shape) for name, p in m.named_parameters()} for m in (model, base))
    differing = [name for name in (shapes | others) if shapes.get(name) != others.get(name)]
    if differing:
        name = differing[0]
        raise ValueError(
            f"The base model has another architecture: {len(differing)} parameters differ, such as {name}, "
            f"{shapes.get(name, 'absent')} in the model and {others.get(name, 'absent')} in its base."
        )


def weights_changed(model: PreTrainedModel, start: Mapping[str, torch.Tensor]) -> ChangedWeights:
    """
    Compute the share of a model's weights whose bits differ from `start`.

    Args:
        model ([`~transformers.PreTrainedModel`]): Model after unlearning.
        start (`dict[str, torch.Tensor]`): Its parameters before unlearning, by name. They are cast to the dtype of the
            model's parameters.

    Returns:
        [`ChangedWeights`]: Share overall and by layer.
    """
    changed: dict[str, int] = {}
    total: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        before = start[name].detach().to(parameter.device, parameter.dtype)
        layer = layer_of(name)
        differs = bit_patterns(parameter.detach()) != bit_patterns(before)
        changed[layer] = changed.get(layer, 0) + int(differs.sum())
        total[layer] = total.get(layer, 0) + parameter.numel()
    by_layer = {layer: changed[layer] / count for layer, count in total.items()}
    return ChangedWeights(sum(changed.values()) / sum(total.values()), by_layer)


def kl_to_base(
    model: PreTrainedModel, base: PreTrainedModel, batch: Sequence[Tokenized], pad_token_id: int
) -> list[float]:
    r"""
    KL(base || model), the divergence of the base from the model: \\( \frac{1}{n} \sum_t \sum_v p_\text{base}(v) \log
    (p_\text{base}(v) / p_\text{model}(v)) \\) over the \\( n \\) answer tokens of every row, each given the true tokens
    before it.

    On text that was not used in unlearning, it measures the side effects of unlearning. Log-softmax and sums are in
    fp32.

    Args:
        model ([`~transformers.PreTrainedModel`]): Model after unlearning; its train or eval mode is restored.
        base ([`~transformers.PreTrainedModel`]): Model before unlearning, with the same vocabulary.
        batch (`list[dict]`): Rows with `input_ids` and `labels`, for one forward pass of each model.
        pad_token_id (`int`): Token to pad with.

    Returns:
        `list[float]`: Divergence of every row in nats per token. It is `0.0` if the models agree.
    """
    with inference(model), inference(base):
        rows = zip(answer_logits(model, batch, pad_token_id), answer_logits(base, batch, pad_token_id), strict=True)
        return torch.stack([_divergence(logits, base_logits) for (logits, _), (base_logits, _) in rows]).tolist()


def _divergence(logits: torch.Tensor, base_logits: torch.Tensor) -> torch.Tensor:
    log_probs, base_log_probs = (x.log_softmax(-1).clamp(min=LOWEST_LOG_PROB) for x in (logits, base_logits))
    return kl_div(log_probs, base_log_probs, reduction="none", log_target=True).sum(-1).mean()
