"""Losses of unlearning objectives, from log-probabilities."""

import torch
from torch import Tensor
from torch.nn import functional as F


def npo_loss(
    log_probs: Tensor, reference_log_probs: Tensor, beta: float, num_sequences: Tensor | int | None = None
) -> Tensor:
    """
    Loss of negative preference optimization (arXiv 2404.05868, eq. 3): `-(2 / beta) * mean log sigmoid(-beta *
    log_ratio)`, where `log_ratio = log_probs - reference_log_probs`.

    At the reference the loss is `2 ln 2 / beta`. As `beta` tends to 0, its gradient tends to that of gradient ascent,
    the gradient of the mean of `log_probs`.

    Args:
        log_probs (`torch.Tensor` of shape `(batch,)`):
            Log-probability of each forget answer, summed over its tokens, in nats.
        reference_log_probs (`torch.Tensor` of shape `(batch,)`):
            Log-probability of each forget answer under the reference, the model before unlearning.
        beta (`float`):
            Inverse temperature; with larger values, forgetting stops sooner.
        num_sequences (`int`, *optional*):
            Divisor in place of `batch`, for gradient accumulation.

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
            Log-probability of each answer token in nats, and zero elsewhere.
        num_tokens (`int`):
            Number of answer tokens to average over.

    Returns:
        `torch.Tensor`: Scalar. Its negative is the forget loss of GradDiff (arXiv 2203.12817).
    """
    return -token_log_probs.sum() / torch.as_tensor(num_tokens).clamp(min=1)
