import math

import pytest
import torch

from wagle_trl.losses.objectives import cross_entropy, npo_loss


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo_loss_at_the_reference_is_2_ln_2_over_beta(beta):
    log_probs = torch.tensor([-3.0, -41.5, -0.25])
    assert npo_loss(log_probs, log_probs, beta).item() == pytest.approx(2 * math.log(2) / beta, rel=1e-5)


def test_npo_loss_at_the_reference_is_13_8629_for_the_default_beta():
    assert npo_loss(torch.zeros(4), torch.zeros(4), 0.1).item() == pytest.approx(13.8629, abs=1e-4)


@pytest.mark.parametrize(
    "log_probs, reference, beta, num_sequences, expected",
    [
        # 20 * ln(1 + exp(0.1 * 10)) = 20 * ln(1 + e) = 20 * 1.3132617
        ([-10.0], [-20.0], 0.1, None, 26.265234),
        # 20 * ln(1 + exp(-1)) = 20 * 0.3132617
        ([-20.0], [-10.0], 0.1, None, 6.265234),
        # the mean of both
        ([-10.0, -20.0], [-20.0, -10.0], 0.1, None, 16.265234),
        # their sum over 8 sequences of the whole step
        ([-10.0, -20.0], [-20.0, -10.0], 0.1, 8, 4.0663085),
        # 4 * ln(1 + exp(0.5 * 2)) = 4 * 1.3132617
        ([-1.0], [-3.0], 0.5, None, 5.2530467),
    ],
)
def test_npo_loss_equals_values_computed_by_hand(log_probs, reference, beta, num_sequences, expected):
    loss = npo_loss(torch.tensor(log_probs), torch.tensor(reference), beta, num_sequences)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta, cosine_at_least", [(1e-4, 0.999999), (1e-2, 0.999)])
def test_npo_gradient_tends_to_that_of_gradient_ascent(beta, cosine_at_least):
    torch.manual_seed(0)
    log_probs = (torch.randn(16) * 5 - 20).requires_grad_()
    reference = torch.randn(16) * 5 - 20
    npo_loss(log_probs, reference, beta).backward()
    ascent = torch.full((16,), 1 / 16)  # gradient of the mean log-probability, which ascent on the loss lowers
    assert torch.cosine_similarity(log_probs.grad, ascent, dim=0) > cosine_at_least
    assert log_probs.grad.sum().item() == pytest.approx(1.0, rel=0.05)


def test_npo_gradient_vanishes_for_sequences_that_are_already_unlikely():
    log_probs = torch.tensor([-10.0, -1000.0], requires_grad=True)
    npo_loss(log_probs, torch.tensor([-10.0, -10.0]), 0.1).backward()
    assert log_probs.grad[0] == pytest.approx(0.5)
    assert log_probs.grad[1].abs() < 1e-20


def test_npo_loss_is_finite_far_from_the_reference():
    loss = npo_loss(torch.tensor([0.0, -1e6]), torch.tensor([-1e6, 0.0]), 0.1)
    assert loss.item() == pytest.approx(1e6)


def test_cross_entropy_is_the_mean_over_answer_tokens_only():
    token_log_probs = torch.tensor([[-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0]])
    assert cross_entropy(token_log_probs, 3).item() == pytest.approx(2.0)
    assert cross_entropy(token_log_probs, torch.tensor(12)).item() == pytest.approx(0.5)


def test_cross_entropy_of_no_tokens_is_zero():
    assert cross_entropy(torch.zeros(2, 3), torch.tensor(0)).item() == 0.0
