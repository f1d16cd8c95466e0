"""Losses of unlearning objectives that look at whole distributions, from hidden states and LM heads."""

import math
from typing import Literal

from torch import Tensor

from .lm_head import Head
from .objectives import token_mean
from .vocabulary import entropy, kl_from_uniform, kl_to_reference, margin, peak_over_mean, suppressed_cross_entropy


def kl_retain_loss(
    head: Head, hidden: Tensor, reference_head: Head, reference_hidden: Tensor, num_tokens: Tensor | int
) -> Tensor:
    """
    Compute the token-mean of `KL(q || p)`, from the reference `q`, the model before unlearning, to the model `p`.

    Args:
        head ([`~losses.lm_head.LinearHead`] or [`~losses.lm_head.OwnHead`]): LM head of the model.
        hidden (`torch.Tensor` of shape `(tokens, width)`): Last hidden states that predict the answer tokens.
        reference_head, reference_hidden (as `head` and `hidden`): Those of the reference; they get no gradient.
        num_tokens (`int`): Number of answer tokens to average over.

    Returns:
        `torch.Tensor`: Scalar, in nats.
    """
    return token_mean(kl_to_reference(head, hidden, reference_head, reference_hidden), num_tokens)


def undial_loss(
    head: Head,
    hidden: Tensor,
    reference_head: Head,
    reference_hidden: Tensor,
    targets: Tensor,
    beta: float,
    num_tokens: Tensor | int,
) -> Tensor:
    """
    Compute the loss of UNDIAL (arXiv 2402.10052): the token-mean cross-entropy to what the model before unlearning said,
    with the logits of the answer's own tokens lowered by `beta`.

    Args:
        head, hidden, reference_head, reference_hidden: As for [`kl_retain_loss`].
        targets (`torch.Tensor` of shape `(tokens,)`): Answer tokens.
        beta (`float`): What is taken from the logits of the answer tokens.
        num_tokens (`int`): Number of answer tokens to average over.

    Returns:
        `torch.Tensor`: Scalar, in nats.
    """
    values = suppressed_cross_entropy(head, hidden, reference_head, reference_hidden, targets, beta)
    return token_mean(values, num_tokens)


def max_entropy_loss(
    head: Head,
    hidden: Tensor,
    num_tokens: Tensor | int,
    direction: Literal["uniform_to_model", "model_to_uniform"] = "uniform_to_model",
) -> Tensor:
    """
    Compute the loss of entropy maximization (arXiv 2410.08109): the token-mean KL divergence between the model `p` and the
    uniform distribution `U`.

    Args:
        head, hidden, num_tokens: As for [`kl_retain_loss`].
        direction (`str`, *optional*, defaults to `"uniform_to_model"`):
            `"uniform_to_model"` is `KL(U || p)`, as in the published code, whose gradient does not vanish where the model is
            sure. `"model_to_uniform"` is `KL(p || U)`, the logarithm of the vocabulary size minus the entropy.

    Returns:
        `torch.Tensor`: Scalar, in nats.
    """
    if direction == "uniform_to_model":
        return token_mean(kl_from_uniform(head, hidden), num_tokens)
    return token_mean(math.log(head.vocab_size) - entropy(head, hidden), num_tokens)


def pdu_forget_loss(head: Head, hidden: Tensor, num_tokens: Tensor | int) -> Tensor:
    """
    Compute the forget loss of PDU (arXiv 2506.05314): the token-mean of the square of the largest minus the mean logit.

    Args:
        head, hidden, num_tokens: As for [`kl_retain_loss`].

    Returns:
        `torch.Tensor`: Scalar.
    """
    return token_mean(peak_over_mean(head, hidden).square(), num_tokens)


def ihl_loss(head: Head, hidden: Tensor, targets: Tensor, num_tokens: Tensor | int) -> Tensor:
    """
    Compute the inverted hinge loss (LoKU, arXiv 2408.06621): the token-mean of `1 + p_target - p_other`, where `p_other` is
    the probability of the most likely other token. It lies in [0, 2].

    Args:
        head, hidden, targets, num_tokens: As for [`undial_loss`].

    Returns:
        `torch.Tensor`: Scalar.
    """
    return token_mean(1 + margin(head, hidden, targets), num_tokens)
