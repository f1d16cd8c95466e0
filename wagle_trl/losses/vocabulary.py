"""
What a model says of all tokens of the vocabulary, one number per token of the text.

Every function takes the LM head and hidden states, and computes logits for as many tokens at a time as fit a fixed size; the
backward pass computes them again. Logits of a whole batch never exist. Log-probabilities, entropy and KL go through TRL's
kernels where there are such: this is the only module that imports them.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .lm_head import Head, LinearHead

try:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    _KERNELS = True
except ImportError:  # they are private to TRL's trainers, and may move
    _KERNELS = False

# Logits that exist at a time: 1,024 tokens of a vocabulary of 32,768
_LOGITS = 2**25
# Vocabulary entries in a tile of TRL's kernels
_TILE = 2**15


def target_log_probs(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """
    Compute the log-probability of each target.

    Args:
        head ([`~losses.lm_head.LinearHead`] or [`~losses.lm_head.OwnHead`]): LM head.
        hidden (`torch.Tensor` of shape `(tokens, width)`): Hidden states that predict the targets.
        targets (`torch.Tensor` of shape `(tokens,)`): Token ids.

    Returns:
        `torch.Tensor` of shape `(tokens,)`: In nats, differentiable, as all results of this module.
    """
    if _has_kernels(hidden, head):
        return _kernel_log_probs(head, hidden, targets, ())[0]

    def log_probs(logits: Tensor, targets: Tensor) -> Tensor:
        return -F.cross_entropy(logits, targets, reduction="none")

    return _per_token(log_probs, head, hidden, targets)


def entropy(head: Head, hidden: Tensor) -> Tensor:
    """Compute the entropy of each prediction. Arguments and result are those of [`target_log_probs`]."""
    if _has_kernels(hidden, head):
        targets = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        return _kernel_log_probs(head, hidden, targets, ("entropy",))[1]

    def entropies(logits: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)

    return _per_token(entropies, head, hidden)


def kl_to_reference(head: Head, hidden: Tensor, reference_head: Head, reference_hidden: Tensor) -> Tensor:
    """
    Compute `KL(q || p)` of each prediction `p` from that of the reference, `q`. It is exactly zero for equal states and heads.

    Args:
        head ([`~losses.lm_head.LinearHead`] or [`~losses.lm_head.OwnHead`]): LM head.
        hidden (`torch.Tensor` of shape `(tokens, width)`): Hidden states.
        reference_head (as `head`): LM head of the reference; `head` itself where training leaves it as it is.
        reference_hidden (as `hidden`): Hidden states of the reference. The reference gets no gradient.

    Returns:
        `torch.Tensor` of shape `(tokens,)`: In nats.
    """
    if _has_kernels(hidden, head, reference_head):
        assert isinstance(head, LinearHead) and isinstance(reference_head, LinearHead)
        tensors = (head.weight, head.bias, reference_hidden, reference_head.weight, reference_head.bias)
        bends = (head.logit_scale, head.soft_cap, reference_head.logit_scale, reference_head.soft_cap)
        return ChunkedDivergenceFunction.apply(hidden, *tensors, 0.0, 1.0, *bends)[0]

    def kl(logits: Tensor, reference_hidden: Tensor) -> Tensor:
        reference = _no_grad_logits(reference_head, reference_hidden).log_softmax(-1)
        return F.kl_div(logits.log_softmax(-1), reference, reduction="none", log_target=True).sum(-1)

    return _per_token(kl, head, hidden, reference_hidden)


def suppressed_cross_entropy(
    head: Head, hidden: Tensor, reference_head: Head, reference_hidden: Tensor, targets: Tensor, beta: float
) -> Tensor:
    """
    Compute the cross-entropy to the reference with the logit of each target lowered by `beta` (UNDIAL, arXiv 2402.10052).

    From KL, entropy and log-probabilities alone it would be a difference of numbers that are nearly equal, divided by a small
    one: where the reference is sure of the target, as of an answer it knows by heart, bf16 would leave nothing of its gradient.

    Args:
        head, hidden, reference_head, reference_hidden: As for [`kl_to_reference`].
        targets (`torch.Tensor` of shape `(tokens,)`): Token ids.
        beta (`float`): What is taken from the logit of the target.
    """

    def cross_entropy(logits: Tensor, reference_hidden: Tensor, targets: Tensor) -> Tensor:
        reference = _no_grad_logits(reference_head, reference_hidden)
        lowered = reference.scatter_add(-1, targets[:, None], reference.new_full((len(targets), 1), -beta))
        return F.cross_entropy(logits, lowered.softmax(-1), reduction="none")

    return _per_token(cross_entropy, head, hidden, reference_hidden, targets)


def kl_from_uniform(head: Head, hidden: Tensor) -> Tensor:
    """Compute `KL(U || p)` of each prediction `p` from the uniform distribution, as [`entropy`] does its entropy."""
    return _per_token(lambda logits: logits.logsumexp(-1) - logits.mean(-1) - math.log(logits.shape[-1]), head, hidden)


def peak_over_mean(head: Head, hidden: Tensor) -> Tensor:
    """Compute by how much the largest logit exceeds the mean logit, for each prediction."""
    return _per_token(lambda logits: logits.amax(-1) - logits.mean(-1), head, hidden)


def margin(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """
    Compute the probability of each target minus that of the most likely other token. Arguments and result are those of
    [`target_log_probs`].
    """

    def margins(logits: Tensor, targets: Tensor) -> Tensor:
        probs = logits.softmax(-1)
        others = probs.scatter(-1, targets[:, None], -torch.inf)
        return probs.gather(-1, targets[:, None])[:, 0] - others.amax(-1)

    return _per_token(margins, head, hidden, targets)


def _has_kernels(hidden: Tensor, *heads: Head) -> bool:
    """Whether TRL's kernels know these heads; they compute in fp32 at most."""
    is_known = all(isinstance(head, LinearHead) for head in heads)
    return _KERNELS and is_known and hidden.dtype != torch.float64


def _kernel_log_probs(head: Head, hidden: Tensor, targets: Tensor, outputs: tuple[str, ...]) -> tuple[Tensor, ...]:
    assert isinstance(head, LinearHead)
    tile = min(_TILE, head.vocab_size)
    return ChunkedLogProbFunction.apply(
        hidden, head.weight, head.bias, targets, 1.0, tile, head.soft_cap, head.logit_scale, outputs
    )


def _per_token(function: Callable[..., Tensor], head: Head, hidden: Tensor, *others: Tensor) -> Tensor:
    """`function(logits, *others)`, of shape `(tokens,)`, for some tokens at a time."""
    size = max(1, _LOGITS // head.vocab_size)

    def of_chunk(hidden: Tensor, *others: Tensor) -> Tensor:
        return function(head.logits(hidden), *others)

    chunks = zip(hidden.split(size), *(other.split(size) for other in others))
    values = [checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.cat(values)


@torch.no_grad()
def _no_grad_logits(head: Head, hidden: Tensor) -> Tensor:
    return head.logits(hidden)
