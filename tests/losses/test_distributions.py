"""Values of the published implementations, run in fp64 on a made-up model of six tokens."""

import pytest
import torch

from wagle_trl.losses import vocabulary
from wagle_trl.losses.distributions import (
    ihl_loss,
    kl_retain_loss,
    max_entropy_loss,
    pdu_forget_loss,
    undial_loss,
)
from wagle_trl.losses.lm_head import LinearHead
from wagle_trl.losses.vocabulary import entropy, kl_to_reference, target_log_probs

FORGET = [0, 2, 4, 1], [1, 3, 0, 5]
FORGET_LABELS = [-100, 2, 4, 1], [-100, -100, 0, 5]
RETAIN = [2, 1, 1, 3], [3, 5, 2, 0]
RETAIN_LABELS = [-100, 1, 1, 3], [-100, 5, 2, -100]


class Tokens:
    """Logits of the answer tokens of two rows, as hidden states for a head that is the identity."""

    def __init__(self, ids, labels, dtype):
        vocabulary = torch.arange(6, dtype=torch.float64)
        places = [(ids[i][0], t) for i in (0, 1) for t in range(3) if labels[i][t + 1] != -100]
        policy = [2 * torch.sin(0.7 * (7 * key + 3 * t + 5 * vocabulary) + 0.1) for key, t in places]
        reference = [2 * torch.cos(0.3 * (5 * key + 2 * t + 7 * vocabulary)) for key, t in places]
        head = LinearHead(torch.eye(6, dtype=dtype))
        self.policy = head, torch.stack(policy).to(dtype)
        self.reference = head, torch.stack(reference).to(dtype)
        self.targets = torch.tensor([labels[i][t + 1] for i in (0, 1) for t in range(3) if labels[i][t + 1] != -100])
        self.count = len(places)


LOSSES = {
    "KL retain": (1.4606913477, lambda f, r: kl_retain_loss(*r.policy, *r.reference, r.count)),
    "KL forget": (1.3814586002, lambda f, r: kl_retain_loss(*f.policy, *f.reference, f.count)),
    "UNDIAL 1": (2.7325865569, lambda f, r: undial_loss(*f.policy, *f.reference, f.targets, 1.0, f.count)),
    "UNDIAL 3": (2.8279392382, lambda f, r: undial_loss(*f.policy, *f.reference, f.targets, 3.0, f.count)),
    "UNDIAL 10": (2.8461585976, lambda f, r: undial_loss(*f.policy, *f.reference, f.targets, 10.0, f.count)),
    "ME": (0.8364083750, lambda f, r: max_entropy_loss(*f.policy, f.count)),
    "ME reversed": (0.5536705470, lambda f, r: max_entropy_loss(*f.policy, f.count, "model_to_uniform")),
    "entropy": (1.2380889222, lambda f, r: entropy(*f.policy).mean()),
    "PDU": (3.5837050157, lambda f, r: pdu_forget_loss(*f.policy, f.count)),
    "IHL": (0.9209399454, lambda f, r: ihl_loss(*f.policy, f.targets, f.count)),
    "cross-entropy": (2.4760146726, lambda f, r: -target_log_probs(*r.policy, r.targets).mean()),
}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_the_published_code(name, dtype, tolerance):
    expected, loss = LOSSES[name]
    assert vocabulary._KERNELS  # which fp32 goes through
    forget, retain = Tokens(FORGET, FORGET_LABELS, dtype), Tokens(RETAIN, RETAIN_LABELS, dtype)
    assert loss(forget, retain).item() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("beta", [1.0, 3.0, 10.0])
def test_undial_equals_its_closed_form_from_kl_and_log_probabilities(beta):
    tokens = Tokens(FORGET, FORGET_LABELS, torch.float64)
    log_probs = target_log_probs(*tokens.policy, tokens.targets)
    share = target_log_probs(*tokens.reference, tokens.targets).exp() * (1 - torch.exp(torch.tensor(-beta)))
    cross_entropies = kl_to_reference(*tokens.policy, *tokens.reference) + entropy(*tokens.reference)
    closed_form = ((cross_entropies + share * log_probs) / (1 - share)).mean()
    loss = undial_loss(*tokens.policy, *tokens.reference, tokens.targets, beta, tokens.count)
    assert loss.item() == pytest.approx(closed_form.item(), abs=1e-7)


def test_pdu_equals_its_form_from_kl_and_the_largest_log_probability():
    head, logits = Tokens(FORGET, FORGET_LABELS, torch.float64).policy
    values = logits.log_softmax(-1).amax(-1) + vocabulary.kl_from_uniform(head, logits) + torch.tensor(6.0).log()
    assert pdu_forget_loss(head, logits, 5).item() == pytest.approx(values.square().mean().item(), abs=1e-7)


@pytest.mark.parametrize("name", ["KL forget", "UNDIAL 3", "ME", "ME reversed", "PDU", "IHL"])
def test_sums_are_divided_by_the_given_number_of_tokens(name):
    expected, loss = LOSSES[name]
    forget = Tokens(FORGET, FORGET_LABELS, torch.float64)
    forget.count = torch.tensor(4 * forget.count)
    assert loss(forget, None).item() == pytest.approx(expected / 4, abs=1e-6)


def test_no_tokens_cost_nothing():
    head, hidden = LinearHead(torch.eye(6)), torch.zeros(0, 6, requires_grad=True)
    loss = pdu_forget_loss(head, hidden, 0) + max_entropy_loss(head, hidden, torch.tensor(0))
    loss.backward()
    assert loss.item() == 0 and hidden.grad.shape == (0, 6)


def test_ihl_is_bounded_and_ends_at_zero_where_another_token_is_sure():
    head = LinearHead(torch.eye(6))
    sure = 50 * torch.eye(6)[:2]
    assert ihl_loss(head, sure, torch.tensor([0, 1]), 2).item() == pytest.approx(2)
    assert ihl_loss(head, sure, torch.tensor([3, 4]), 2).item() == pytest.approx(0)
