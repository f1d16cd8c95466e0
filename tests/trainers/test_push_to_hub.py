import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForCausalLM

from wagle_trl import WeightMask

from ..deltas import same_weights


def test_push_to_hub_carries_model_mask_picture_report_and_card(make_trainer, small_mask, tiny_model, hub):
    tiny_model().push_to_hub("user/base")
    trainer = make_trainer(model="user/base", mask_config=small_mask, hub_model_id="user/unlearned")
    trainer.train()
    assert trainer.push_to_hub().oid == HfApi().repo_info("user/unlearned").sha
    files = set(HfApi().list_repo_files("user/unlearned"))
    assert files >= {"README.md", "model.safetensors", "wagle_mask.safetensors", "wagle_mask.png", "wagle_report.json"}
    assert same_weights(AutoModelForCausalLM.from_pretrained("user/unlearned", dtype="auto"), trainer.model)
    mask = WeightMask.from_pretrained("user/unlearned")
    assert mask == trainer.mask
    assert mask.info["base_revision"] == HfApi().repo_info("user/base").sha
    data = ModelCard.load("user/unlearned").data
    assert (data.base_model, data.base_model_relation) == ("user/base", "finetune")
    assert {"npo", "unlearning", "wagle-trl"} <= set(data.tags)


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_what_is_pushed_while_it_trains_has_mask_and_card(strategy, make_trainer, small_mask, hub):
    saving = {"save_strategy": "steps", "save_steps": 2, "push_to_hub": True, "hub_strategy": strategy}
    trainer = make_trainer(mask_config=small_mask, hub_model_id="user/training", **saving)
    trainer.train()
    files = set(HfApi().list_repo_files("user/training"))
    assert files >= {"README.md", "model.safetensors", "wagle_mask.safetensors"}
    if strategy == "checkpoint":
        names = ("README.md", "model.safetensors", "wagle_mask.safetensors", "wagle_report.json")
        assert files >= {f"last-checkpoint/{name}" for name in names}
    assert WeightMask.from_pretrained("user/training") == trainer.mask


def test_a_push_that_fails_leaves_the_output_folder_whole(make_trainer, small_mask, hub, tmp_path):
    trainer = make_trainer(mask_config=small_mask, hub_model_id="user/unlearned")
    trainer.train()
    hub.cut("PUT", "/lfs/", after_bytes=64, times=float("inf"))
    with pytest.raises(RuntimeError):
        trainer.push_to_hub()
    out = tmp_path / "out"
    assert same_weights(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32), trainer.model)
    assert WeightMask.load(out) == trainer.mask
    hub.faults.clear()
    trainer.push_to_hub()
    assert WeightMask.from_pretrained("user/unlearned") == trainer.mask
