"""
Log-probabilities of answers without the logits of a whole batch in fp32: the only module that asks for TRL's fused LM head.

That head does by hand what a model does between its last hidden states and its logits, and knows some architectures only.
So it is compared with the model's own logits before any work, and gives way to them where they differ.
"""

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import logging
from trl.trainer.utils import FusedCausalLMOutput

from ..text import printable

logger = logging.get_logger(__name__)

# Of the comparison: tokens, and the largest logit that they are made to have, so that a bend such as a soft cap shows
_TOKENS = 16
LARGEST_LOGIT = 64.0
# Tokens whose logits are in fp32 at a time
_CHUNK = 512


class TokenPredictions(NamedTuple):
    """
    Result of [`answer_log_probs`]: tensors of shape `(rows, length - 1)`, zero where there is no label.

    Attributes:
        log_probs (`torch.Tensor`): Log-probability of each label, in nats, differentiable.
        label_mask (`torch.Tensor`): Where there is a label.
        entropy (`torch.Tensor`): Entropy of what is predicted, differentiable.
        is_top1 (`torch.Tensor`): Whether the label is the most likely token.
        aux_loss (`torch.Tensor`, *optional*): Scalar that balances experts, where the model is asked for it.
    """

    log_probs: Tensor
    label_mask: Tensor
    entropy: Tensor
    is_top1: Tensor
    aux_loss: Tensor | None


def answer_log_probs(model: nn.Module, batch: dict[str, Tensor]) -> TokenPredictions:
    """
    What the model says of the labels of a batch, token by token.

    Args:
        model (`torch.nn.Module`): Model with a fused LM head that was checked with [`check_fused_head`].
        batch (`dict`): `input_ids`, `labels`, and what else the model takes.
    """
    outputs = model(**batch, use_cache=False, fused_lm_head=True)
    return TokenPredictions(*(getattr(outputs, name) for name in TokenPredictions._fields))


def check_fused_head(model: nn.Module, temperature: float = 1.0) -> bool:
    """
    Compare TRL's fused LM head with the model's own logits on one short row; where it raises or differs by more than
    rounding, have `model(..., fused_lm_head=True)` use the logits from here on, and say so in one logged line.

    The logits of a batch are then held in the dtype of the model, with their gradient, and in fp32 for a few hundred
    tokens at a time.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model after TRL's `add_fused_lm_head`, on its device.
        temperature (`float`, *optional*, defaults to `1.0`): Temperature of the fused head.

    Returns:
        `bool`: Whether the fused head is right.
    """
    base = base_of(model)
    with in_eval_mode(base):
        difference = _difference(base, temperature)
    if difference is None:
        return True
    base.forward = types.MethodType(_forward_by_logits(type(base).forward, temperature), base)
    logger.warning(
        f"TRL's fused LM head is wrong for {type(base).__name__}: {difference}. Using the model's own logits instead, which "
        f"takes memory for {base.config.get_text_config().vocab_size:,} logits per token of a batch."
    )
    return False


def base_of(model: nn.Module) -> PreTrainedModel:
    """Get the causal language model, adapters in it included, of one that PEFT may have wrapped."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch a model to evaluation, and every part of it back to what it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def short_rows(model: PreTrainedModel, count: int) -> dict[str, Any]:
    """Build `count` equal rows of different tokens, on the device of a model, to compare ways to its logits with."""
    vocab_size = model.config.get_text_config().vocab_size
    # Of the first quarter: placeholders of images, which need some, are usually at the end
    step = max(vocab_size // (4 * _TOKENS), 1)
    device = next(model.get_input_embeddings().parameters()).device
    ids = (torch.arange(1, _TOKENS + 1, device=device) * step % vocab_size).repeat(count, 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


@torch.no_grad()
def _difference(model: PreTrainedModel, temperature: float) -> str | None:
    """How the fused head errs, if it does."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    if head is None:
        return "it finds no LM head"
    inputs = short_rows(model, 2)
    if getattr(config, "output_router_logits", False):
        inputs["output_router_logits"] = True
    peak = model(**inputs).logits.abs().max().item()
    # One row as it is, in which a bias counts, and one with larger logits, in which a bend counts
    factors = torch.tensor([1.0, max(1.0, LARGEST_LOGIT / peak)]).view(2, 1, 1)

    def enlarged(hidden_states: Tensor) -> Tensor:
        return hidden_states * factors.to(hidden_states)

    with head.register_forward_pre_hook(lambda head, inputs: (enlarged(inputs[0]), *inputs[1:])):
        own = model(**inputs)
    logits = own.logits.float()[:, :-1] / temperature
    # The most and the least likely tokens: their log-probabilities follow the shape of the logits most closely
    is_even = torch.arange(_TOKENS - 1, device=logits.device) % 2 == 0
    labels = F.pad(torch.where(is_even, logits.argmax(-1), logits.argmin(-1)), (1, 0), value=-100)

    def enlarge(backbone: nn.Module, inputs, outputs) -> None:
        outputs.last_hidden_state = enlarged(outputs.last_hidden_state)

    try:
        with model.base_model.register_forward_hook(enlarge):
            fused = model(**inputs, labels=labels, fused_lm_head=True)
    except Exception as error:  # whatever comes of a model that is not built as TRL supposes
        return f"it raises {type(error).__name__} ({printable(error, 200)})"
    targets = labels[:, 1:, None]
    errors = fused.log_probs.float() - logits.log_softmax(-1).gather(-1, targets)[..., 0]
    # A few roundings of the two logits that a log-probability is mainly made of, and fp32 sums in another order
    eps = max(torch.finfo(model.dtype).eps, torch.finfo(own.logits.dtype).eps)
    magnitudes = logits.gather(-1, targets)[..., 0].abs() + logits.amax(-1).abs()
    allowed = (2 * eps + 32 * torch.finfo(torch.float32).eps) * magnitudes
    if not (errors.abs().mean(1) <= allowed.mean(1)).all():
        return f"its log-probabilities are off by up to {errors.abs().max():.2g} nats"
    if "output_router_logits" in inputs:
        aux_losses = [0.0 if aux is None else float(aux) for aux in (fused.aux_loss, own.get("aux_loss"))]
        if not abs(aux_losses[0] - aux_losses[1]) <= 0.01 * abs(aux_losses[1]):
            return f"its auxiliary loss is {aux_losses[0]:.4g}, the model's own {aux_losses[1]:.4g}"
    return None


def _forward_by_logits(forward: Callable, temperature: float) -> Callable:
    """`forward` of a class of models, with the interface of TRL's fused LM head."""

    @functools.wraps(forward)  # `generate` reads the signature
    def forward_by_logits(
        self,
        *args,
        fused_lm_head: bool = False,
        labels: Any = None,
        shift_labels: Any = None,
        num_items_in_batch: Any = None,
        **kwargs,
    ):
        if not fused_lm_head:
            of_loss = {"labels": labels, "shift_labels": shift_labels, "num_items_in_batch": num_items_in_batch}
            return forward(self, *args, **{name: x for name, x in of_loss.items() if x is not None}, **kwargs)
        config = self.config.get_text_config()
        if getattr(config, "output_router_logits", False):
            kwargs.setdefault("output_router_logits", True)
        outputs = forward(self, *args, **kwargs | {"use_cache": False})
        logits = outputs.logits
        if shift_labels is None:
            targets, length = F.pad(labels[:, 1:], (0, 1), value=-100), labels.shape[1] - 1
        else:
            targets, length = shift_labels, shift_labels.shape[1]
        targets = targets.to(logits.device)
        chunks = zip(logits.flatten(0, 1).split(_CHUNK), targets.flatten().split(_CHUNK))
        scores = [
            checkpoint(_token_scores, *chunk, temperature, use_reentrant=False, preserve_rng_state=False)
            for chunk in chunks
        ]
        per_token = [torch.cat(score).view(targets.shape)[:, :length] for score in zip(*scores)]
        log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1 = per_token
        answer = targets[:, :length] != -100
        loss = -log_probs.sum() / (answer.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        aux_loss = None
        if kwargs.get("output_router_logits"):
            aux_loss = outputs.get("aux_loss")
            aux_loss = loss.new_zeros(()) if aux_loss is None else aux_loss  # some models count it and have none
            loss = loss + getattr(config, "router_aux_loss_coef", 0.0) * aux_loss.to(loss.device)
        return FusedCausalLMOutput(
            loss=loss,
            log_probs=log_probs,
            entropy=entropy,
            log_sum_sq_probs=log_sum_sq_probs,
            mean_logits=mean_logits,
            is_top1=is_top1,
            label_mask=answer,
            aux_loss=aux_loss,
        )

    return forward_by_logits


def _token_scores(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, ...]:
    """The fields of a `FusedCausalLMOutput` that have a value per token, in its order; zero where there is no target."""
    logits = logits.float() / temperature
    # Finite, since models rule tokens out by logits of minus infinity, and 0 * inf would be no entropy
    log_probs = logits.log_softmax(-1).clamp(min=torch.finfo(torch.float32).min)
    with torch.no_grad():
        others = (2 * log_probs).logsumexp(-1), logits.mean(-1)
    scores = (
        log_probs.gather(-1, targets.clamp(min=0)[:, None])[:, 0],
        -(log_probs.exp() * log_probs).sum(-1),
        *others,
        logits.argmax(-1) == targets,
    )
    return tuple(score.masked_fill(targets == -100, 0) for score in scores)
