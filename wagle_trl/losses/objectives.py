"""Unlearning objectives: log-probabilities in, scalar out."""

import torch
from torch import Tensor
from torch.nn import functional as F


def npo_loss(
    log_probs: Tensor, reference_log_probs: Tensor, beta: float, num_sequences: Tensor | int | None = None
) -> Tensor:
    """
    Negative preference optimization (arXiv 2404.05868, eq. 3): `-(2 / beta) * mean log sigmoid(-beta * log_ratio)`
    with `log_ratio = log_probs - reference_log_probs`.

    At the reference it is `2 ln 2 / beta`; as `beta` tends to 0 its gradient tends to that of gradient ascent, the
    mean of `log_probs`.

    Args:
        log_probs (`torch.Tensor` of shape `(batch,)`):
            Log-probability of each forget answer, summed over its tokens, in nats.
        reference_log_probs (`torch.Tensor` of shape `(batch,)`):
            The same under the model before unlearning.
        beta (`float`):
            Inverse temperature; larger values stop sooner.
        num_sequences (`int`, *optional*):
            Number to divide by instead of `batch`, for gradient accumulation.

    Returns:
        `torch.Tensor`: Scalar.
    """
    terms = -(2 / beta) * F.logsigmoid(-beta * (log_probs - reference_log_probs))
    return terms.sum() / (len(log_probs) if num_sequences is None else num_sequences)


def cross_entropy(token_log_probs: Tensor, num_tokens: Tensor | int) -> Tensor:
    """
    Token-mean negative log-likelihood.

    Args:
        token_log_probs (`torch.Tensor` of shape `(batch, length)`):
            Log-probability of each answer token, zero elsewhere, in nats.
        num_tokens (`int`):
            Number of answer tokens to average over.

    Returns:
        `torch.Tensor`: Scalar; its negative is the forget term of GradDiff (arXiv 2203.12817).
    """
    return -token_log_probs.sum() / torch.as_tensor(num_tokens).clamp(min=1)
