import copy

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from wagle_trl import SparseDelta
from wagle_trl.masks.info import MaskInfo

from ..support.deltas import same_weights


@pytest.mark.parametrize("kind", ["npo", "masked_sft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_delta_of_a_run_makes_its_model_of_the_base(kind, dtype, make_trainer, small_mask, tiny_model, tmp_path):
    model = tiny_model(dtype=dtype)
    base = copy.deepcopy(model)
    trainer = make_trainer(kind, model=model, mask_config=small_mask, save_delta=True)
    trainer.train()
    trainer.save_model()
    delta = SparseDelta.load(tmp_path / "out")
    assert delta.mask == trainer.mask
    assert delta.old is None  # it holds what was forgotten
    assert not same_weights(trainer.model, base)
    made = delta.apply(base)
    assert same_weights(made, AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto"))


def test_the_delta_of_a_resumed_run_is_of_the_base_and_not_of_the_checkpoint(
    make_trainer, small_mask, tiny_model, tmp_path
):
    options = {"mask_config": small_mask, "save_delta": True, "save_strategy": "steps", "save_steps": 2}
    make_trainer(max_steps=2, **options).train()
    assert not (tmp_path / "out" / "checkpoint-2" / "wagle_delta.safetensors").exists()
    trainer = make_trainer(**options)
    base = copy.deepcopy(trainer.model)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    assert same_weights(SparseDelta.load(tmp_path / "out").apply(base), trainer.model)


def test_training_on_leaves_the_base_what_it_was(make_trainer, small_mask, tmp_path):
    trainer = make_trainer(mask_config=small_mask, save_delta=True)
    base = copy.deepcopy(trainer.model)
    trainer.train()
    trainer.train()
    trainer.save_model()
    assert same_weights(SparseDelta.load(tmp_path / "out").apply(base), trainer.model)


def test_a_checkpoint_is_no_base(make_trainer, small_mask, tiny_model, tmp_path):
    make_trainer(max_steps=2, mask_config=small_mask, save_strategy="steps", save_steps=2).train()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-2", dtype="auto")
    trainer = make_trainer(model=model, mask_config=small_mask, save_delta=True)
    with pytest.raises(ValueError, match="the mask was made for other weights than those loaded; pass the base as"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_a_delta_names_its_base_whatever_its_mask_says(make_trainer, small_mask, tiny_model, tiny_tokenizer, tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    mask = make_trainer(mask_config=small_mask).compute_mask()
    mask.info = MaskInfo()
    trainer = make_trainer(model=str(tmp_path / "base"), mask=mask, save_delta=True)
    trainer.train()
    trainer.save_model()
    assert SparseDelta.load(tmp_path / "out").base_model == str(tmp_path / "base")


def test_without_the_option_no_delta_is_written(make_trainer, small_mask, tmp_path):
    trainer = make_trainer(mask_config=small_mask)
    trainer.train()
    trainer.save_model()
    assert not (tmp_path / "out" / "wagle_delta.safetensors").exists()


def test_a_delta_needs_a_mask_and_a_whole_model(make_trainer, small_mask):
    with pytest.raises(ValueError, match="save_delta saves the weights that a mask selects; pass `mask` or"):
        make_trainer(save_delta=True)
    adapters = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    with pytest.raises(ValueError, match="adapters are small files already, so unset it"):
        make_trainer(save_delta=True, mask_config=small_mask, peft_config=adapters)
