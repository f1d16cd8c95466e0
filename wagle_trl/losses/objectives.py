"""
Losses of unlearning objectives, from log-probabilities.

Losses per token take the log-probability of each answer token in nats, of shape `(batch, length)`, zero elsewhere; and the
number of answer tokens to average over.
"""

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
    return preference_loss(-(log_probs - reference_log_probs), beta, num_sequences) * 2


def preference_loss(margins: Tensor, beta: float, num_sequences: Tensor | int | None = None) -> Tensor:
    """
    Compute `-(1 / beta) * mean log sigmoid(beta * margin)`. With the margin of one answer over another it is the loss of
    answer preservation (arXiv 2410.08109); twice that, with log-ratios to a reference, is the loss of IdkDPO (arXiv 2404.05868)
    and AltPO (arXiv 2409.13474).

    Args:
        margins (`torch.Tensor` of shape `(batch,)`): By how much each wanted answer is more likely, in nats.
        beta (`float`): Inverse temperature.
        num_sequences (`int`, *optional*): Divisor in place of `batch`, for gradient accumulation.

    Returns:
        `torch.Tensor`: Scalar.
    """
    terms = -F.logsigmoid(beta * margins) / beta
    return terms.sum() / (len(margins) if num_sequences is None else num_sequences)


def simnpo_loss(
    mean_log_probs: Tensor, beta: float, delta: float = 0.0, num_sequences: Tensor | int | None = None
) -> Tensor:
    """
    Loss of SimNPO (arXiv 2410.07163, eq. 4): NPO with the mean over the tokens, and without a reference, `-(2 / beta) * mean
    log sigmoid(-beta * mean_log_probs - beta * delta)`.

    Args:
        mean_log_probs (`torch.Tensor` of shape `(batch,)`): Log-probability of each forget answer, per token, in nats.
        beta (`float`): Inverse temperature.
        delta (`float`, *optional*, defaults to `0.0`): Margin, in nats per token.
        num_sequences (`int`, *optional*): Divisor in place of `batch`, for gradient accumulation.

    Returns:
        `torch.Tensor`: Scalar.
    """
    return preference_loss(-mean_log_probs - delta, beta, num_sequences) * 2


def token_mean(values: Tensor, num_tokens: Tensor | int) -> Tensor:
    """Sum of values per token, divided by the number of tokens (by 1 where there is none)."""
    return values.sum() / torch.as_tensor(num_tokens).clamp(min=1)


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
    return -token_mean(token_log_probs, num_tokens)


def wga_loss(log_probs: Tensor, beta: float, num_tokens: Tensor | int) -> Tensor:
    """
    Loss of weighted gradient ascent (arXiv 2502.19301): `mean p^beta log p`, where the weight `p^beta` has no gradient. A
    token that is forgotten weighs nothing.
    """
    return token_mean((beta * log_probs).exp().detach() * log_probs, num_tokens)


def satimp_loss(log_probs: Tensor, beta1: float, beta2: float, num_tokens: Tensor | int) -> Tensor:
    """
    Loss of SatImp (arXiv 2505.11953): `mean p^beta1 (1 - p)^beta2 log p`, where the weight has no gradient: that of
    saturation times that of importance.
    """
    probs = log_probs.exp().detach()
    return token_mean(probs**beta1 * (1 - probs) ** beta2 * log_probs, num_tokens)


def tnpo_loss(
    log_probs: Tensor, reference_log_probs: Tensor, beta: float, alpha: float, num_tokens: Tensor | int
) -> Tensor:
    """
    Loss of token-wise NPO and of its weighted form (arXiv 2502.19301): `mean u log p`, where the weight `u = 2 p^(beta +
    alpha) / (p^beta + q^beta + 1e-5)` of a token with probability `q` under the reference has no gradient.

    With an `alpha` of 0 and without the 1e-5 of the published code, the gradient is that of NPO on single tokens. It takes
    the weight from tokens that were unlikely from the start.
    """
    powers, reference_powers = (beta * log_probs).exp(), (beta * reference_log_probs).exp()
    weights = 2 * powers * (alpha * log_probs).exp() / (powers + reference_powers + 1e-5)
    return token_mean(weights.detach() * log_probs, num_tokens)


def unlikelihood_loss(log_probs: Tensor, answer: Tensor, num_tokens: Tensor | int) -> Tensor:
    """
    Unlikelihood (arXiv 1908.04319), `mean -log(1 - p)`. Its gradient is that of CE-U (arXiv 2503.01224), the cross-entropy to
    what the model would say without the target: p / (1 - p) times that of log p.

    Args:
        log_probs (`torch.Tensor` of shape `(batch, length)`):
            Log-probability of each token in nats. Above -1e-6, the rounding of 1 - p in fp32, there is no gradient.
        answer (`torch.Tensor` of shape `(batch, length)`): Whether a token counts.
        num_tokens (`int`): Number of these tokens.

    Returns:
        `torch.Tensor`: Scalar.
    """
    missing = -torch.expm1(log_probs.masked_fill(~answer, -1.0).clamp(max=-1e-6))
    return token_mean(-missing.log().masked_fill(~answer, 0), num_tokens)


def uce_loss(log_probs: Tensor, answer: Tensor, num_tokens: Tensor | int) -> Tensor:
    """
    Unlearning cross-entropy (arXiv 2412.20200), `mean -log(1 - p / 2)`: bounded by ln 2, and ascent that stops by itself.

    The arguments are those of [`unlikelihood_loss`].
    """
    return token_mean(-torch.log1p(-log_probs.exp() / 2).masked_fill(~answer, 0), num_tokens)
