import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from wagle_trl.losses.fused_head import check_fused_head
from wagle_trl.losses.lm_head import OwnHead, SplitModel
from wagle_trl.losses.vocabulary import entropy, kl_from_uniform, kl_to_reference, target_log_probs

from ..support.architectures import RIGHT, WRONG, batch, build


def states_and_logits(model) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states and logits of the predictions in a batch, one row per token."""
    with SplitModel.of(model).last_hidden_states() as kept:
        logits = model(**batch(), use_cache=False).logits
    return kept[0][:, :-1].flatten(0, 1), logits[:, :-1].flatten(0, 1)


@pytest.mark.parametrize("kind", [*RIGHT, *WRONG])
def test_the_formula_is_used_where_it_is_right_and_only_there(kind):
    model = build(kind)
    split = SplitModel.of(model)
    assert split.is_linear == (
        kind in RIGHT or kind == "llama4_text"
    )  # only the backbone of it is not where TRL looks
    assert model.training
    hidden, logits = states_and_logits(model.eval())
    for head in (split.head, OwnHead(model, split.backbone)):
        assert torch.allclose(head.logits(hidden), logits, atol=2e-4, rtol=1e-5), head


@pytest.mark.parametrize("kind", ["gemma2", "granite", "llama", "modernbert-decoder", "recurrent_gemma"])
def test_the_same_is_found_in_bf16(kind):
    assert SplitModel.of(build(kind).bfloat16()).is_linear == (kind in RIGHT)


@pytest.mark.parametrize("kind", ["modernbert-decoder", "recurrent_gemma"])
def test_gradients_through_the_models_own_forward_are_those_of_its_logits(kind):
    model = build(kind).eval()
    dense = copy.deepcopy(model)
    add_fused_lm_head(model)
    check_fused_head(model)  # which replaces the forward of the model
    targets = batch()["input_ids"][:, 1:].flatten()
    logits = states_and_logits(dense)[1].float()
    log_probs = logits.log_softmax(-1)
    (log_probs.gather(-1, targets[:, None])[:, 0] - log_probs.mean(-1)).sum().backward()
    head, (hidden, _) = SplitModel.of(model).head, states_and_logits(model)
    (target_log_probs(head, hidden, targets) + kl_from_uniform(head, hidden)).sum().backward()
    expected = {name: parameter.grad for name, parameter in dense.named_parameters()}
    for name, parameter in model.named_parameters():
        largest = float(expected[name].abs().max())
        assert torch.allclose(parameter.grad, expected[name], atol=1e-5 * largest + 1e-7, rtol=1e-4), name


def test_a_head_with_an_adapter_is_the_models_own():
    model = get_peft_model(build("llama"), LoraConfig(target_modules=["lm_head"], lora_dropout=0.0))
    split = SplitModel.of(model)
    assert not split.is_linear  # although an untrained adapter changes nothing
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    hidden, logits = states_and_logits(model.eval())
    assert torch.allclose(split.head.logits(hidden), logits, atol=1e-4)
    entropy(split.head, hidden).sum().backward()
    assert all(p.grad.abs().max() > 0 for name, p in model.named_parameters() if "lora_B" in name)


def test_adapters_elsewhere_leave_the_formula():
    model = get_peft_model(build("gemma2"), LoraConfig(target_modules=["o_proj"], init_lora_weights=False))
    split = SplitModel.of(model)
    assert split.is_linear and split.model.get_submodule(split.backbone) is model.get_base_model().model


def test_a_head_that_peft_trains_whole_is_the_one_that_is_trained():
    model = get_peft_model(build("llama"), LoraConfig(target_modules=["o_proj"], modules_to_save=["lm_head"]))
    trained = [p for name, p in model.named_parameters() if p.requires_grad and "modules_to_save" in name]
    assert SplitModel.of(model).head.weight is trained[0]


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "modernbert-decoder", "recurrent_gemma"])
def test_a_frozen_copy_keeps_what_the_head_was(kind):
    model = build(kind).eval()
    add_fused_lm_head(model)
    check_fused_head(model)  # which replaces the forward of the model
    head = SplitModel.of(model).head
    frozen = head.frozen_copy()
    hidden, _ = states_and_logits(model)
    hidden = hidden.detach()
    before = head.logits(hidden)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert torch.equal(frozen.logits(hidden), before)
    assert not frozen.logits(hidden).requires_grad
    assert not torch.allclose(head.logits(hidden), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_tokens_that_a_model_rules_out_do_not_spoil_the_others():
    class Ruling(LlamaForCausalLM):
        def forward(self, **kwargs):
            outputs = super().forward(**kwargs)
            outputs.logits[..., 3] = -torch.inf
            return outputs

    model = build("llama").eval()
    model.__class__ = Ruling
    head = SplitModel.of(model).head
    assert isinstance(head, OwnHead)
    hidden, logits = states_and_logits(model)
    values = entropy(head, hidden)
    assert torch.allclose(values, torch.distributions.Categorical(logits=logits).entropy(), atol=1e-4)
    values = values + kl_to_reference(head, hidden, head, 0.9 * hidden)
    (gradient,) = torch.autograd.grad(values.sum(), hidden)
    assert values.isfinite().all() and gradient.isfinite().all() and gradient.any()


def test_a_model_whose_logits_need_more_than_its_hidden_states_is_refused():
    class Odd(LlamaForCausalLM):
        def forward(self, input_ids=None, **kwargs):
            outputs = super().forward(input_ids=input_ids, **kwargs)
            outputs.logits = outputs.logits + input_ids[..., None] * torch.linspace(0, 1, 320)
            return outputs

    model = build("llama")
    model.__class__ = Odd
    with pytest.raises(ValueError, match="logits of Odd cannot be computed from its last hidden states") as raised:
        SplitModel.of(model)
    assert "NPO" in str(raised.value) and len(str(raised.value)) < 800 and "\n" not in str(raised.value)
