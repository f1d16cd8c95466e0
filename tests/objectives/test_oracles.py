"""Values of the published implementations, run in fp64 on made-up logits of six tokens, through the objectives themselves."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from wagle_trl.losses.lm_head import LinearHead
from wagle_trl.objectives.names import OBJECTIVES
from wagle_trl.unlearning.batch import Stream, UnlearningBatch
from wagle_trl.unlearning.retain_losses import RETAIN_LOSSES

ROWS = {  # keys of two rows, and their labels
    "forget": ((0, 1), [[-100, 2, 4, 1], [-100, -100, 0, 5]]),
    "retain": ((2, 3), [[-100, 1, 1, 3], [-100, 5, 2, -100]]),
    "alternate": ((4, 5), [[-100, 3, 0, 2], [-100, -100, 1, -100]]),
    "retain_refusal": ((6, 7), [[-100, 3, 0, 2], [-100, -100, 1, -100]]),
}
FORGET_TERMS = {
    "gradient_ascent": [({}, -1.4890770603)],
    "graddiff": [({}, -1.4890770603)],
    "npo": [({}, 19.5312567770)],
    "tnpo": [({"beta": 4.0}, -1.5826573051)],
    "wtnpo": [({"beta": 4.0, "alpha": 1.5}, -0.3184767474)],
    "idkdpo": [({"beta": 0.1}, 24.9166808364)],
    "altpo": [({}, 24.9166808364)],
    "po": [({}, 3.6972855537)],
    "idk_ap": [({}, 3.6972855537)],
    "simnpo": [({"beta": 4.5}, 0.0020030399), ({"beta": 2.5, "delta": 0.5}, 0.1054021252)],
    "wga": [({"beta": 1.0}, -0.3017732899), ({"beta": 2.0}, -0.1101851064)],
    "satimp": [({"beta1": 5.0, "beta2": 1.0}, -0.0050043963)],
    "ceu": [({"skip_first_token": False}, 0.4161675906)],
    "uce": [({}, 0.1789445895)],
    "ihl": [({}, 0.9209399454)],
    "undial": [({"beta": 1.0}, 2.7325865569), ({"beta": 3.0}, 2.8279392382), ({"beta": 10.0}, 2.8461585976)],
    "me": [({}, 0.8364083750), ({"direction": "model_to_uniform"}, 0.5536705470)],
    "pdu": [({}, 3.5837050157)],
}
CASES = [(name, options, value) for name, cases in FORGET_TERMS.items() for options, value in cases]
RETAIN_TERMS = {"nll": 2.4760146726, "kl": 1.4606913477, "answer_preservation": 8.6020161270}
PRECISIONS = pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["fp64", "fp32"]
)


def logits_of(keys: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the model and of the reference, of shape `(rows, length, vocab)`."""
    key, place, token = torch.meshgrid(torch.tensor(keys), torch.arange(3), torch.arange(6), indexing="ij")
    policy = 2 * torch.sin(0.7 * (7 * key + 3 * place + 5 * token).double() + 0.1)
    return policy, 2 * torch.cos(0.3 * (5 * key + 2 * place + 7 * token).double())


def stream_of(kind: str, dtype: torch.dtype) -> Stream:
    """The rows of a kind, with logits as hidden states of a head that is the identity."""
    keys, labels = ROWS[kind]
    targets = torch.tensor(labels)[:, 1:]
    answer, head = targets != -100, LinearHead(torch.eye(6, dtype=dtype))
    policy, reference = (logits.to(dtype).requires_grad_() for logits in logits_of(keys))
    log_probs, reference_log_probs = (
        logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0] * answer
        for logits in (policy, reference)
    )
    counts = torch.tensor(2), answer.sum()
    states = policy[answer], head, reference[answer], head
    stream = Stream(log_probs, answer, *counts, targets, reference_log_probs, *states)
    stream.leaf = policy
    return stream


def batch_of(dtype: torch.dtype) -> UnlearningBatch:
    return UnlearningBatch({kind: stream_of(kind, dtype) for kind in ROWS})


def forget_loss(name: str, batch: UnlearningBatch, tmp_path, **options) -> torch.Tensor:
    trainer_class = OBJECTIVES[name]
    args = trainer_class.config_class(str(tmp_path), report_to="none", **options)
    return trainer_class.forget_loss(SimpleNamespace(args=args), batch)


def test_every_objective_has_a_value_to_compare_with():
    assert FORGET_TERMS.keys() == OBJECTIVES.keys() and RETAIN_TERMS.keys() == RETAIN_LOSSES.keys()


@PRECISIONS
@pytest.mark.parametrize("name, options, expected", CASES, ids=[f"{name} {options}" for name, options, _ in CASES])
def test_the_forget_term_is_that_of_the_published_code(name, options, expected, dtype, tolerance, tmp_path):
    value = forget_loss(name, batch_of(dtype), tmp_path, **options)
    assert value.item() == pytest.approx(expected, abs=tolerance, rel=tolerance if dtype == torch.float32 else None)


@PRECISIONS
@pytest.mark.parametrize("name", RETAIN_TERMS)
def test_the_retain_term_is_that_of_the_published_code(name, dtype, tolerance):
    value = RETAIN_LOSSES[name].loss(batch_of(dtype), SimpleNamespace(preservation_beta=0.1))
    assert value.item() == pytest.approx(RETAIN_TERMS[name], abs=tolerance)


@pytest.mark.parametrize("skip, expected", [(False, 1.4164826204), (True, 1.5987713093)], ids=["all", "first skipped"])
def test_the_gradient_of_ceu_is_that_of_its_published_form_whose_value_is_another(skip, expected, tmp_path):
    batch = batch_of(torch.float64)
    (ours,) = torch.autograd.grad(
        forget_loss("ceu", batch, tmp_path, skip_first_token=skip), batch.forget.leaf, retain_graph=True
    )
    logits, labels = batch.forget.leaf, batch.forget.labels
    answer = batch.forget.answer.clone()
    if skip:
        answer &= answer.cumsum(1) > 1
    without = logits.detach().scatter(-1, labels.clamp(min=0)[..., None], -torch.inf)
    published = F.cross_entropy(logits[answer], without[answer].softmax(-1))
    assert published.item() == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(ours, torch.autograd.grad(published, logits)[0], atol=1e-12)
