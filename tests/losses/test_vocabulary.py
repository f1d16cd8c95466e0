import importlib.util
import math
import sys

import pytest
import torch
from torch.nn import functional as F
from trl.kernels import chunked_divergence, chunked_logprob

from wagle_trl.losses import vocabulary
from wagle_trl.losses.lm_head import LinearHead
from wagle_trl.losses.vocabulary import (
    entropy,
    kl_from_uniform,
    kl_to_reference,
    margin,
    peak_over_mean,
    suppressed_cross_entropy,
    target_log_probs,
)
from wagle_trl.memory.allocations import Allocations

TOKENS, VOCAB, WIDTH = 11, 37, 5
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"logit_scale": 0.3},
    "soft cap": {"soft_cap": 4.0},
    "all": {"bias": True, "logit_scale": 1.7, "soft_cap": 6.0},
}
FUNCTIONS = {
    "log-probabilities": lambda p, q, targets: target_log_probs(*p, targets),
    "entropy": lambda p, q, targets: entropy(*p),
    "KL to the reference": lambda p, q, targets: kl_to_reference(*p, *q),
    "KL from uniform": lambda p, q, targets: kl_from_uniform(*p),
    "suppressed": lambda p, q, targets: suppressed_cross_entropy(*p, *q, targets, 3.0),
    "peak": lambda p, q, targets: peak_over_mean(*p),
    "margin": lambda p, q, targets: margin(*p, targets),
}


def dense(name, z, r, targets):
    """The definitions, from all logits."""
    p, q, y = z.log_softmax(-1), r.log_softmax(-1), targets[:, None]
    is_target = F.one_hot(targets, z.shape[-1]).bool()
    uniform = torch.full_like(z, -math.log(z.shape[-1]))
    return {
        "log-probabilities": lambda: p.gather(-1, y)[:, 0],
        "entropy": lambda: -(p.exp() * p).sum(-1),
        "KL to the reference": lambda: (q.exp() * (q - p)).sum(-1),
        "KL from uniform": lambda: (uniform.exp() * (uniform - p)).sum(-1),
        "suppressed": lambda: -((r - 3.0 * is_target).softmax(-1) * p).sum(-1),
        "peak": lambda: z.max(-1).values - z.mean(-1),
        "margin": lambda: p.gather(-1, y)[:, 0].exp() - p.exp()[~is_target].view(len(z), -1).max(-1).values,
    }[name]()


def make(options, dtype=torch.float32, seed=0, tokens=TOKENS, vocab=VOCAB, width=WIDTH):
    """A head and hidden states, leaves that need gradients; the same numbers in every dtype up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"hidden": (tokens, width), "weight": (vocab, width), "bias": (vocab,)}
    tensors = {name: torch.randn(*size, generator=generator) for name, size in sizes.items()}
    tensors = {name: tensor.bfloat16().to(dtype).requires_grad_() for name, tensor in tensors.items()}
    head = LinearHead(tensors["weight"], **options | {"bias": tensors["bias"] if options.get("bias") else None})
    return head, tensors["hidden"]


def logits_of(head, hidden):
    z = head.logit_scale * (hidden @ head.weight.T + (0 if head.bias is None else head.bias))
    return z if head.soft_cap is None else head.soft_cap * torch.tanh(z / head.soft_cap)


def gradients(values, head, hidden):
    weights = torch.linspace(-1, 2, len(values)).to(values)
    leaves = [hidden, head.weight] + ([] if head.bias is None else [head.bias])
    return torch.autograd.grad((values * weights).sum(), leaves)


@pytest.fixture
def small_chunks(monkeypatch):
    """Vocabulary and tokens in several chunks, of sizes that divide neither."""
    monkeypatch.setattr(vocabulary, "_LOGITS", 4 * VOCAB)
    monkeypatch.setattr(vocabulary, "_TILE", 8)
    for module in (chunked_divergence, chunked_logprob):
        monkeypatch.setattr(module, "TOKEN_CHUNK_SIZE", 3)
    monkeypatch.setattr(chunked_divergence, "VOCAB_CHUNK_SIZE", 8)


TARGETS = torch.randint(VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "dtype, kernels, tolerance",
    [(torch.float64, True, 1e-12), (torch.float32, True, 2e-5), (torch.float32, False, 2e-5)],
    ids=["fp64", "kernels", "no kernels"],
)
@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_those_of_dense_autograd(
    name, options, dtype, kernels, tolerance, small_chunks, monkeypatch
):
    monkeypatch.setattr(vocabulary, "_KERNELS", kernels)
    p, q = make(options, dtype), make(options, dtype, seed=1)
    exact_p, exact_q = make(options, torch.float64), make(options, torch.float64, seed=1)
    values = FUNCTIONS[name](p, q, TARGETS)
    expected = dense(name, logits_of(*exact_p), logits_of(*exact_q), TARGETS)
    assert values.shape == (TOKENS,) and torch.allclose(values.double(), expected, atol=tolerance, rtol=tolerance)
    for found, exact in zip(gradients(values, *p), gradients(expected, *exact_p)):
        assert torch.allclose(found.double(), exact, atol=tolerance * float(exact.abs().max()), rtol=tolerance)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bf16_errs_no_more_than_dense_logits_in_bf16(name, kernels, monkeypatch):
    monkeypatch.setattr(vocabulary, "_KERNELS", kernels)
    options = HEADS["all"]

    def errors(values, p):
        found = [values.detach(), *gradients(values, *p)]
        exact_p, exact_q = make(options, torch.float64), make(options, torch.float64, seed=1)
        exact = dense(name, logits_of(*exact_p), logits_of(*exact_q), TARGETS)
        return [float((a - b).norm() / b.norm()) for a, b in zip(found, [exact.detach(), *gradients(exact, *exact_p)])]

    p, q = make(options, torch.bfloat16), make(options, torch.bfloat16, seed=1)
    ours = errors(FUNCTIONS[name](p, q, TARGETS), p)
    theirs = errors(dense(name, logits_of(*p).float(), logits_of(*q).float(), TARGETS), p)
    assert all(own <= 1.5 * other + 0.003 for own, other in zip(ours, theirs)), (ours, theirs)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_tokens_give_no_values_and_gradients_of_zero(name, kernels, monkeypatch):
    monkeypatch.setattr(vocabulary, "_KERNELS", kernels)
    p, q = make(HEADS["all"], tokens=0), make(HEADS["all"], tokens=0)
    values = FUNCTIONS[name](p, q, TARGETS[:0])
    assert values.shape == (0,)
    values.sum().backward()
    assert p[1].grad.shape == (0, WIDTH)
    assert p[0].weight.grad is None or not p[0].weight.grad.any()


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl_of_a_model_to_itself_is_exactly_zero(dtype, kernels, monkeypatch):
    monkeypatch.setattr(vocabulary, "_KERNELS", kernels)
    head, hidden = make(HEADS["all"], dtype)
    values = kl_to_reference(head, hidden, head, hidden)
    assert not values.any()
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients(values, head, hidden))


@pytest.mark.parametrize("kernels", [True, False])
def test_the_reference_gets_no_gradient(kernels, monkeypatch):
    monkeypatch.setattr(vocabulary, "_KERNELS", kernels)
    (head, hidden), (reference_head, reference_hidden) = make({}), make({}, seed=1)
    values = kl_to_reference(head, hidden, reference_head, reference_hidden)
    values = values + suppressed_cross_entropy(head, hidden, reference_head, reference_hidden, TARGETS, 1.0)
    values.sum().backward()
    assert hidden.grad is not None and head.weight.grad is not None
    assert reference_hidden.grad is None and reference_head.weight.grad is None


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_projects_in_its_dtype_and_leaves_fp32_values(name, kernels, monkeypatch):
    monkeypatch.setattr(vocabulary, "_KERNELS", kernels)
    p, q = make({"bias": True}), make({"bias": True}, seed=1)
    exact = FUNCTIONS[name](p, q, TARGETS)
    with torch.autocast("cpu", torch.bfloat16):
        values = FUNCTIONS[name](p, q, TARGETS)
    assert values.dtype == torch.float32 and torch.allclose(values, exact, atol=0.1, rtol=0.02)
    for found, expected in zip(gradients(values, *p), gradients(exact, *p)):
        assert found.dtype == torch.float32
        assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_logits_of_all_tokens_never_exist(name, kernels, monkeypatch):
    monkeypatch.setattr(vocabulary, "_KERNELS", kernels)
    monkeypatch.setattr(vocabulary, "_LOGITS", 2000)
    monkeypatch.setattr(vocabulary, "_TILE", 100)
    monkeypatch.setattr(chunked_divergence, "VOCAB_CHUNK_SIZE", 100)
    for module in (chunked_divergence, chunked_logprob):
        monkeypatch.setattr(module, "TOKEN_CHUNK_SIZE", 20)
    sizes = {"tokens": 40, "vocab": 500, "width": 3}
    p, q = make({"soft_cap": 4.0}, **sizes), make({"soft_cap": 4.0}, seed=1, **sizes)
    with Allocations() as memory:
        FUNCTIONS[name](p, q, torch.arange(40)).sum().backward()
    assert max(memory.sizes) <= 4 * 2000


def test_a_target_known_by_heart_leaves_a_gradient_in_bf16():
    """What the closed form from KL and log-probabilities loses: it divides by 1 - q_y (1 - exp(-beta))."""
    (head, hidden), (_, reference) = make({}, torch.bfloat16, width=64), make({}, torch.bfloat16, seed=1, width=64)
    targets = logits_of(head, reference).argmax(-1)
    p, q = (head, hidden), (head, (2 * reference).detach())
    assert target_log_probs(*q, targets).exp().median() > 0.999
    exact_p = LinearHead(head.weight.detach().double()), hidden.detach().double().requires_grad_()
    exact_q = LinearHead(head.weight.detach().double()), q[1].double()
    found = torch.autograd.grad(suppressed_cross_entropy(*p, *q, targets, 10.0).sum(), hidden)[0]
    exact = torch.autograd.grad(suppressed_cross_entropy(*exact_p, *exact_q, targets, 10.0).sum(), exact_p[1])[0]
    assert torch.cosine_similarity(found.double().flatten(), exact.flatten(), dim=0) > 0.999


def test_without_trls_kernels_there_is_another_way(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl.kernels.chunked_divergence", None)  # importing it is an ImportError
    spec = importlib.util.find_spec("wagle_trl.losses.vocabulary")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    p, q = make(HEADS["all"]), make(HEADS["all"], seed=1)
    assert not module._KERNELS and vocabulary._KERNELS
    assert torch.allclose(module.kl_to_reference(*p, *q), kl_to_reference(*p, *q), atol=1e-5)
