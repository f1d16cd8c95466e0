import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from wagle_trl import MaskConfig
from wagle_trl.attribution.compute_mask import compute_mask
from wagle_trl.losses import fused_head
from wagle_trl.losses.fused_head import answer_log_probs, check_fused_head
from wagle_trl.losses.per_sample import fused_sample_losses, sample_losses
from wagle_trl.memory.allocations import Allocations

from ..support.architectures import RIGHT, WRONG, batch, build


def with_fused_head(model):
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    return model


def truth(model) -> dict[str, torch.Tensor]:
    """What the fused head should say, from plain logits."""
    logits = model(**batch(), use_cache=False).logits[:, :-1].float()
    targets = batch(labels=True)["labels"][:, 1:]
    answer = targets != -100
    log_probs = logits.log_softmax(-1)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    return {
        "log_probs": log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0] * answer,
        "entropy": entropy * answer,
        "is_top1": (logits.argmax(-1) == targets) & answer,
        "label_mask": answer,
    }


@pytest.mark.parametrize("scale", [1.0, 0.01], ids=["trained", "small logits"])
@pytest.mark.parametrize("kind", [*RIGHT, *WRONG])
def test_the_fused_head_is_used_where_it_is_right_and_only_there(kind, scale):
    model = with_fused_head(build(kind, scale))
    assert check_fused_head(model) == (kind in RIGHT)
    assert model.training
    model.eval()
    expected, said = truth(model), answer_log_probs(model, batch(labels=True))
    for name, values in expected.items():
        assert torch.allclose(getattr(said, name).float(), values.float(), atol=2e-4), name


@pytest.mark.parametrize("kind", ["gemma2", "granite", "llama", "modernbert-decoder", "recurrent_gemma"])
def test_the_check_sees_the_same_in_bf16(kind):
    assert check_fused_head(with_fused_head(build(kind).bfloat16())) == (kind in RIGHT)


@pytest.mark.parametrize("kind", WRONG)
def test_gradients_of_the_models_own_logits_are_those_of_its_cross_entropy(kind, monkeypatch):
    monkeypatch.setattr(fused_head, "_CHUNK", 7)
    model = build(kind, output_router_logits=False).eval() if kind == "llama4_text" else build(kind).eval()
    plain = copy.deepcopy(model)
    plain(**batch(labels=True)).loss.backward()
    check_fused_head(with_fused_head(model))
    outputs = answer_log_probs(model, batch(labels=True))
    loss = -outputs.log_probs.sum() / outputs.label_mask.sum()
    assert torch.allclose(loss, model(**batch(labels=True), fused_lm_head=True).loss)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        if gradients[name] is not None:
            largest = gradients[name].abs().max()
            assert torch.allclose(parameter.grad, gradients[name], atol=1e-5 * float(largest) + 1e-8, rtol=1e-4), name


def test_entropy_has_a_gradient_and_ruled_out_tokens_do_not_spoil_it():
    logits = torch.randn(4, 10)
    logits[:, 3] = -torch.inf
    logits.requires_grad_()
    log_probs, entropy, *_ = fused_head._token_scores(logits, torch.tensor([1, 2, 0, -100]), 2.0)
    expected = torch.distributions.Categorical(probs=(logits.detach() / 2).softmax(-1)).entropy()
    assert torch.allclose(entropy[:3], expected[:3], atol=1e-6) and entropy[3] == log_probs[3] == 0
    (entropy.sum() + log_probs.sum()).backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[:3].abs().max() > 0


def test_logits_are_in_fp32_for_a_chunk_of_tokens_at_a_time(monkeypatch):
    monkeypatch.setattr(fused_head, "_CHUNK", 5)
    model = with_fused_head(build("modernbert-decoder", vocab_size=5000).bfloat16())
    check_fused_head(model)
    with Allocations(model.parameters()) as memory:
        answer_log_probs(model, batch(labels=True)).log_probs.sum().backward()
    in_bf16 = 3 * 20 * 5000 * 2
    assert max(memory.sizes) == in_bf16


def test_the_auxiliary_loss_is_that_of_the_model():
    model = with_fused_head(build("mixtral"))
    own = model.eval()(**batch(), use_cache=False).aux_loss
    model.forward = fused_head._forward_by_logits(type(model).forward, 1.0).__get__(model)
    outputs = answer_log_probs(model, batch(labels=True))
    assert outputs.aux_loss == own > 0
    cross_entropy = -outputs.log_probs.sum() / outputs.label_mask.sum()
    loss = model(**batch(labels=True), fused_lm_head=True).loss
    assert torch.allclose(loss, cross_entropy + model.config.router_aux_loss_coef * own)


def test_adapters_are_part_of_the_models_own_logits():
    model = with_fused_head(build("recurrent_gemma"))
    adapted = get_peft_model(model, LoraConfig(target_modules=["o_proj"], init_lora_weights=False, lora_dropout=0.0))
    assert not check_fused_head(adapted)
    adapted.eval()
    said = answer_log_probs(adapted, batch(labels=True)).log_probs
    assert torch.allclose(said, truth(adapted)["log_probs"], atol=1e-4)
    said.sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for n, p in adapted.named_parameters() if "lora_" in n)


def test_a_temperature_divides_the_logits():
    model = build("recurrent_gemma").eval()
    add_fused_lm_head(model, temperature=0.5)
    assert not check_fused_head(model, temperature=0.5)
    logits = 2 * model(**batch(), use_cache=False).logits[:, :-1]
    targets = batch()["input_ids"][:, 1:, None]
    said = answer_log_probs(model, batch() | {"labels": batch()["input_ids"]}).log_probs
    assert torch.allclose(said, logits.log_softmax(-1).gather(-1, targets)[..., 0], atol=1e-4)


def test_a_copy_runs_its_own_weights():
    model = with_fused_head(build("modernbert-decoder"))
    check_fused_head(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        before = answer_log_probs(model, batch(labels=True)).log_probs
        copied.get_output_embeddings().weight.zero_()
        assert torch.equal(answer_log_probs(model, batch(labels=True)).log_probs, before)
        assert not torch.equal(answer_log_probs(copied, batch(labels=True)).log_probs, before)
        assert not torch.equal(copied(**batch()).logits, model(**batch()).logits)


def test_compute_mask_checks_the_head_too():
    masks = []
    for losses in (sample_losses, fused_sample_losses):
        model = with_fused_head(build("modernbert-decoder"))
        config = MaskConfig(mask_score="gradient", mask_density=0.1)
        masks.append(compute_mask(model, [batch(labels=True)], None, config, losses=losses, progress=False)[0])
    assert masks[0].jaccard(masks[1]) > 0.99
