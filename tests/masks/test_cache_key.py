import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from wagle_trl.masks import cache_key as module
from wagle_trl.masks.cache_key import cache_key


@pytest.fixture
def model(tiny_model):
    return tiny_model()


def weight(model):
    with torch.no_grad():
        model.lm_head.weight[0, 0] *= 1 + 2**-20  # far below what bf16 can show


def buffer(model):
    next(model.buffers()).mul_(2)


def rope(model):
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 5.0}


def attention(model):
    model.set_attn_implementation("eager")


def generation(model):
    model.generation_config.repetition_penalty = 2.0


@pytest.mark.parametrize("change", [weight, buffer, rope, attention, generation])
def test_whatever_changes_what_a_model_says_changes_the_key(change, model):
    before = cache_key(model)
    assert before == cache_key(copy.deepcopy(model))
    change(model)
    assert cache_key(model) != before


def test_so_do_its_dtype_other_content_and_versions(model, monkeypatch):
    keys = [cache_key(model), cache_key(model, rows=[1]), cache_key(model, rows=[2])]
    monkeypatch.setattr(module, "version", lambda name: "another")
    keys += [cache_key(model), cache_key(model.bfloat16())]
    assert len(set(keys)) == 5


def test_where_a_model_was_read_does_not(model):
    before = cache_key(model)
    model.config._name_or_path = "/another/place"
    assert cache_key(model) == before


def test_adapters_of_equal_weights_and_other_options_have_another_key(tiny_model):
    def key(**options):
        torch.manual_seed(0)
        return cache_key(get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **options)))

    assert key() == key(base_model_name_or_path="/another/place")
    assert len({key(), key(lora_alpha=4), key(use_rslora=True)}) == 3
