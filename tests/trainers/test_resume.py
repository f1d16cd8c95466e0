import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from wagle_trl import MaskConfig, WeightMask
from wagle_trl.files.manifest import Manifest
from wagle_trl.trainers.resuming import newest_whole_checkpoint, whole_manifest

# 6 forget rows, 2 to a step: 3 steps an epoch, so checkpoint-2 is mid-epoch and the run goes on into the third
OPTIONS = dict(
    per_device_train_batch_size=1,
    gradient_accumulation_steps=2,
    max_steps=7,
    max_grad_norm=0.5,
    lr_scheduler_type="linear",
    save_strategy="steps",
    save_steps=2,
)


def refuse(*args, **kwargs):
    raise AssertionError("computed again")


@pytest.fixture
def run_and_resume(make_trainer, tiny_model, tmp_path, monkeypatch):
    """Train to the end, then go on from a checkpoint in a fresh trainer on a fresh base model; both trainers."""

    def run(kind="npo", model=None, checkpoint="checkpoint-2", **options):
        model = model or {}
        whole = make_trainer(kind, tiny_model(**model), **OPTIONS | options)
        whole.train()
        torch.manual_seed(1234)  # the new process starts with other random numbers
        resumed = make_trainer(kind, tiny_model(**model), output_dir=str(tmp_path / "again"), **OPTIONS | options)
        monkeypatch.setattr("wagle_trl.trainers.mask_mixin.compute_mask", refuse)
        monkeypatch.setattr("wagle_trl.unlearning.reference.reference_log_probs", refuse)
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / checkpoint))
        return whole, resumed

    return run


def assert_same_weights(whole, resumed):
    expected = dict(whole.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_mid_epoch_gives_bit_identical_weights(num_workers, dtype, run_and_resume, small_mask):
    whole, resumed = run_and_resume(model={"dtype": dtype}, mask_config=small_mask, dataloader_num_workers=num_workers)
    assert any(log["grad_norm"] > 0.5 for log in whole.state.log_history if "grad_norm" in log)
    assert resumed.state.global_step == 7
    assert_same_weights(whole, resumed)
    assert resumed.mask == whole.mask
    logs, others = ({log["step"]: log for log in t.state.log_history if "loss" in log} for t in (whole, resumed))
    assert logs[7]["forget_loss"] == others[7]["forget_loss"]


def test_8_bit_moments_resume_bit_identically(run_and_resume, small_mask):
    whole, resumed = run_and_resume(
        model={"intermediate_size": 128}, mask_config=small_mask, optim="adamw_8bit", adam_beta2=0.9
    )
    assert {state["exp_avg"].dtype for state in resumed.optimizer.state.values()} == {torch.int8, torch.float32}
    assert_same_weights(whole, resumed)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_with_dropout_draws_the_same_random_numbers(num_workers, run_and_resume, small_mask):
    whole, resumed = run_and_resume(
        model={"attention_dropout": 0.5}, mask_config=small_mask, dataloader_num_workers=num_workers
    )
    assert_same_weights(whole, resumed)


@pytest.mark.parametrize("checkpoint", ["checkpoint-3", "checkpoint-5"])
def test_resuming_between_two_epochs_or_in_a_later_one_gives_bit_identical_weights(checkpoint, run_and_resume):
    config = MaskConfig(mask_score="ratio", mask_density=0.2)  # with a random one, recomputing would go unnoticed
    whole, resumed = run_and_resume(checkpoint=checkpoint, mask_config=config, save_steps=int(checkpoint[-1]))
    assert_same_weights(whole, resumed)


@pytest.mark.parametrize("kind", ["grad_diff", "masked_sft"])
def test_the_other_trainers_resume_bit_identically_with_a_mask(kind, run_and_resume, small_mask):
    assert_same_weights(*run_and_resume(kind, mask_config=small_mask))


def test_adapters_resume_bit_identically_with_a_mask(run_and_resume, small_mask):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    whole, resumed = run_and_resume(mask_config=small_mask, peft_config=lora)
    assert all("lora_" in name for name in resumed.mask.bits)
    assert_same_weights(whole, resumed)


def test_dense_unlearning_resumes_bit_identically_with_the_reference_of_the_checkpoint(run_and_resume, tmp_path):
    whole, resumed = run_and_resume()
    assert_same_weights(whole, resumed)
    saved = load_file(tmp_path / "out" / "checkpoint-2" / "wagle_reference.safetensors")["reference_log_probs"]
    assert torch.equal(
        torch.tensor([value for row in resumed.train_dataset["reference_log_probs"] for value in row]), saved
    )
    assert whole.train_dataset["reference_log_probs"] == resumed.train_dataset["reference_log_probs"]


def test_true_resumes_from_the_last_checkpoint_of_the_output_directory(
    make_trainer, small_mask, monkeypatch, tmp_path
):
    whole = make_trainer(mask_config=small_mask, **OPTIONS)
    whole.train()
    shutil.rmtree(tmp_path / "out" / "checkpoint-7")
    last = make_trainer(mask_config=small_mask, **OPTIONS)
    monkeypatch.setattr("wagle_trl.trainers.mask_mixin.compute_mask", refuse)
    last.train(resume_from_checkpoint=True)
    assert last.state.global_step == 7
    assert_same_weights(whole, last)


def test_resuming_with_other_forget_rows_is_refused(make_trainer, small_mask, forget_rows, tmp_path):
    make_trainer(mask_config=small_mask, **OPTIONS).train()
    trainer = make_trainer(mask_config=small_mask, train_dataset=forget_rows.select(range(4)), **OPTIONS)
    with pytest.raises(
        ValueError, match=r"The forget rows, their order, or the answers in them are not those of .*checkpoint-2"
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_resuming_with_the_forget_rows_in_another_order_is_refused(make_trainer, small_mask, forget_rows, tmp_path):
    make_trainer(mask_config=small_mask, **OPTIONS).train()
    trainer = make_trainer(mask_config=small_mask, train_dataset=forget_rows.select([1, 0, 2, 3, 4, 5]), **OPTIONS)
    with pytest.raises(
        ValueError, match=r"The forget rows, their order, or the answers in them are not those of .*checkpoint-2"
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_the_moved_share_counts_from_the_original_weights_after_a_resume(make_trainer, small_mask, tmp_path):
    whole = make_trainer(mask_config=small_mask, **OPTIONS)
    whole.train()
    resumed = make_trainer(mask_config=small_mask, **OPTIONS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert resumed._moved.share() == whole._moved.share() > 0


def test_gradients_of_an_interrupted_run_do_not_reach_the_next(make_trainer, small_mask):
    class Interrupt(TrainerCallback):
        def on_substep_end(self, *args, **kwargs):
            raise KeyboardInterrupt

    options = OPTIONS | {"gradient_accumulation_steps": 2, "max_steps": 1, "save_strategy": "no"}
    trainer, fresh = (make_trainer(mask_config=small_mask, **options) for _ in range(2))
    trainer.add_callback(Interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(Interrupt)
    trainer.train()
    fresh.train()
    assert trainer._masked_optimizer.last_grad_norm == fresh._masked_optimizer.last_grad_norm


def changed(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a file is missing": (Path.unlink, "is missing"),
    "a file is cut off": (lambda path: os.truncate(path, path.stat().st_size // 2), "has another size"),
    "a bit flipped": (changed, "has another content"),
}


def test_a_checkpoint_that_is_not_as_it_was_saved_is_refused(trained, make_trainer, small_mask):
    manifest = whole_manifest(trained)
    assert manifest.files.keys() >= {
        "model.safetensors",
        "wagle_mask.safetensors",
        "wagle_reference.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    }
    assert manifest.fingerprint == json.loads((trained / "wagle_report.json").read_text())["fingerprint"]
    trainer = make_trainer(mask_config=small_mask, **OPTIONS)
    for name in manifest.files.keys() - {"README.md"}:  # which its owner may edit
        for damage, message in DAMAGE.values():
            sound = (trained / name).read_bytes()
            damage(trained / name)
            with pytest.raises(ValueError, match=f"checkpoint-2' is not a whole checkpoint: '{name}' {message}"):
                trainer.train(resume_from_checkpoint=str(trained))
            (trained / name).write_bytes(sound)
    assert whole_manifest(trained) == manifest


@pytest.fixture
def trained(make_trainer, small_mask, tmp_path):
    """The second checkpoint of a run with a mask."""
    make_trainer(mask_config=small_mask, **OPTIONS | {"max_steps": 2}).train()
    return tmp_path / "out" / "checkpoint-2"


def test_a_checkpoint_without_a_manifest_was_cut_off(trained, make_trainer, small_mask):
    (trained / "wagle_manifest.json").unlink()
    trainer = make_trainer(mask_config=small_mask, **OPTIONS)
    with pytest.raises(
        ValueError, match=r"is not a whole checkpoint: it has no wagle_manifest\.json, which is saved last"
    ):
        trainer.train(resume_from_checkpoint=str(trained))
    with pytest.raises(ValueError, match=r"No whole checkpoint to resume from in .*out"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_config": MaskConfig(mask_score="random", mask_density=0.2)}, r"\(mask_density 0.5 -> 0.2\)"),
        ({"mask_config": MaskConfig(mask_score="magnitude", mask_density=0.5)}, "mask_score random -> magnitude"),
        ({"mask": "other"}, "`mask` differs from the mask of '.*checkpoint-2'"),
        ({}, "checkpoint-2 was trained with a mask; pass `mask` or `mask_config`"),
        ({"completion_only_loss": False}, "The forget rows, their order, or the answers in them are not those of"),
        ({"kind": "grad_diff"}, "is of NPO, this trainer of GradDiff"),
    ],
    ids=["density", "score", "mask", "no mask", "labels", "objective"],
)
def test_resuming_another_run_is_refused(options, message, trained, make_trainer, small_mask, tiny_model):
    if "mask" in options:
        masks = {name: torch.ones(p.shape) for name, p in tiny_model().named_parameters() if "layers" in name}
        options = {"mask": WeightMask.from_dense(masks)}
    elif "completion_only_loss" in options or "kind" in options:
        options = options | {"mask_config": small_mask}
    trainer = make_trainer(**OPTIONS | options)
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=str(trained))
    assert trainer.state.global_step == 0


def test_other_options_than_the_checkpoint_has_are_said(trained, make_trainer, small_mask, caplog):
    changed = {"retain_weight": 2.0, "beta": 0.2, "max_steps": 3}
    trainer = make_trainer(mask_config=small_mask, **OPTIONS | changed)
    with caplog.at_level("WARNING", "wagle_trl"):
        trainer.train(resume_from_checkpoint=str(trained))
    assert "retain_weight 20.0 -> 2.0" in caplog.text and "beta 0.1 -> 0.2" in caplog.text


@pytest.mark.parametrize("option", ["learning_rate", "weight_decay"])
def test_options_that_the_optimizer_brings_back_must_be_the_same(option, trained, make_trainer, small_mask):
    trainer = make_trainer(mask_config=small_mask, **OPTIONS | {option: 0.02})
    with pytest.raises(ValueError, match=f"was trained with {option} 0.0*1, which comes back with its optimizer"):
        trainer.train(resume_from_checkpoint=str(trained))


def test_a_mask_from_a_file_resumes_the_run_that_computed_it(trained, make_trainer):
    trainer = make_trainer(mask=trained / "wagle_mask.safetensors", **OPTIONS | {"max_steps": 3})
    trainer.train(resume_from_checkpoint=str(trained))
    assert trainer.state.global_step == 3


def test_a_checkpoint_without_optimizer_state_is_refused(make_trainer, small_mask, tmp_path):
    make_trainer(mask_config=small_mask, save_only_model=True, **OPTIONS | {"max_steps": 2}).train()
    trainer = make_trainer(mask_config=small_mask, **OPTIONS)
    with pytest.raises(
        ValueError, match="it has no optimizer state \\(save_only_model\\); load it as a model instead"
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_true_skips_what_is_not_whole_and_says_so(make_trainer, small_mask, tmp_path, caplog):
    whole = make_trainer(mask_config=small_mask, **OPTIONS)
    whole.train()
    (tmp_path / "out" / "checkpoint-7" / "wagle_manifest.json").unlink()
    changed(tmp_path / "out" / "checkpoint-6" / "optimizer.pt")
    last = make_trainer(mask_config=small_mask, **OPTIONS)
    with caplog.at_level("WARNING", "wagle_trl"):
        last.train(resume_from_checkpoint=True)
    assert "checkpoint-7' is not a whole checkpoint: it has no wagle_manifest.json" in caplog.text
    assert "checkpoint-6' is not a whole checkpoint: 'optimizer.pt' has another content. It is skipped." in caplog.text
    assert_same_weights(whole, last)


def test_no_checkpoint_to_resume_from_is_an_error(make_trainer, small_mask, tmp_path):
    trainer = make_trainer(mask_config=small_mask)
    with pytest.raises(ValueError, match=r"No whole checkpoint to resume from in .*out"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"No checkpoint at '.*checkpoint-9': the folder does not exist"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-9"))


@pytest.mark.parametrize("name", ["scaler.pt", "pytorch_model.bin", "rng_state_0.pth", "global_step2/state.pt"])
def test_a_file_that_was_not_saved_with_the_checkpoint_is_refused(name, tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "model").write_text("weights")
    Manifest.of(tmp_path / "checkpoint-2", ["model"]).write(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "wagle_eval.json").write_text("{}")
    (tmp_path / "checkpoint-²").mkdir()
    (tmp_path / "checkpoint-old-3").mkdir()
    assert newest_whole_checkpoint(str(tmp_path)).name == "checkpoint-2"
    (tmp_path / "checkpoint-2" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "checkpoint-2" / name).write_text("left by another run")
    with pytest.raises(ValueError, match=f"holds '{name}', which was not saved with the checkpoint; move it away"):
        whole_manifest(tmp_path / "checkpoint-2")


def test_a_delta_is_of_the_base_that_the_checkpoint_started_from(make_trainer, tiny_model, tmp_path):
    masks = {name: torch.ones(p.shape) for name, p in tiny_model().named_parameters() if "layers" in name}
    options = OPTIONS | {"mask": WeightMask.from_dense(masks), "save_delta": True}  # a mask that says of no base
    make_trainer(**options | {"max_steps": 2}).train()
    trainer = make_trainer(model=tiny_model(seed=9), **options)
    with pytest.raises(ValueError, match=r"The model is not the base that '.*checkpoint-2' started from; pass that"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_options_that_are_no_loss_are_compared_too_and_no_path_is_kept(trained, make_trainer, small_mask, caplog):
    others = {
        "data_seed": 7,
        "adam_beta1": 0.5,
        "max_steps": 3,
        "trajectory_steps": 2,
    }  # which choose when a run stops
    trainer = make_trainer(mask_config=small_mask, **OPTIONS | others)
    with caplog.at_level("WARNING", "wagle_trl"):
        trainer.train(resume_from_checkpoint=str(trained))
    for change in ("data_seed None -> 7", "adam_beta1 0.9 -> 0.5", "trajectory_steps 0 -> 2"):
        assert change in caplog.text
    assert str(trained.parent) not in (trained / "wagle_manifest.json").read_text()


def test_a_checkpoint_that_was_being_replaced_by_a_killed_process_is_put_back(trained, make_trainer, small_mask):
    whole_manifest(trained)
    trained.rename(trained.with_name(".replaced-checkpoint-2"))
    trained.mkdir()
    (trained / "model.safetensors").write_text("half of the new one")
    assert newest_whole_checkpoint(str(trained.parent)) == trained
    assert not list(trained.parent.glob(".replaced-*"))
