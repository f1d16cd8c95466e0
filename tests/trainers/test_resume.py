import shutil

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from wagle_trl import MaskConfig, NPOTrainer

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
        monkeypatch.setattr("wagle_trl.trainers.masked.compute_mask", refuse)
        monkeypatch.setattr(NPOTrainer, "reference_log_probs", refuse)
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
    assert torch.equal(torch.tensor(resumed.train_dataset["reference_log_probs"]), saved)
    assert whole.train_dataset["reference_log_probs"] == resumed.train_dataset["reference_log_probs"]


def test_true_resumes_from_the_last_checkpoint_of_the_output_directory(
    make_trainer, small_mask, monkeypatch, tmp_path
):
    whole = make_trainer(mask_config=small_mask, **OPTIONS)
    whole.train()
    shutil.rmtree(tmp_path / "out" / "checkpoint-7")
    last = make_trainer(mask_config=small_mask, **OPTIONS)
    monkeypatch.setattr("wagle_trl.trainers.masked.compute_mask", refuse)
    last.train(resume_from_checkpoint=True)
    assert last.state.global_step == 7
    assert_same_weights(whole, last)


def test_resuming_with_other_forget_rows_is_refused(make_trainer, small_mask, forget_rows, tmp_path):
    make_trainer(mask_config=small_mask, **OPTIONS).train()
    trainer = make_trainer(mask_config=small_mask, train_dataset=forget_rows.select(range(4)), **OPTIONS)
    with pytest.raises(ValueError, match="The forget rows, or their order, are not those of the checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_resuming_with_the_forget_rows_in_another_order_is_refused(make_trainer, small_mask, forget_rows, tmp_path):
    make_trainer(mask_config=small_mask, **OPTIONS).train()
    trainer = make_trainer(mask_config=small_mask, train_dataset=forget_rows.select([1, 0, 2, 3, 4, 5]), **OPTIONS)
    with pytest.raises(ValueError, match="The forget rows, or their order, are not those of the checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_resuming_a_masked_checkpoint_without_a_mask_is_refused(make_trainer, small_mask, tmp_path):
    make_trainer(mask_config=small_mask, **OPTIONS).train()
    with pytest.raises(ValueError, match="checkpoint-2 was trained with a mask; pass `mask` or `mask_config`"):
        make_trainer(**OPTIONS).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


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
    assert trainer._grad_norm == fresh._grad_norm


@pytest.mark.parametrize(
    "missing, message",
    [
        ("wagle_mask.safetensors", "No mask file at .*checkpoint-2"),
        (
            "wagle_reference.safetensors",
            "No reference log-probabilities at .*resume from a checkpoint of this trainer",
        ),
    ],
)
def test_a_checkpoint_without_its_files_is_refused(missing, message, make_trainer, small_mask, tmp_path):
    make_trainer(mask_config=small_mask, **OPTIONS | {"max_steps": 2}).train()
    (tmp_path / "out" / "checkpoint-2" / missing).unlink()
    trainer = make_trainer(mask_config=small_mask, **OPTIONS)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_no_checkpoint_to_resume_from_is_an_error(make_trainer, small_mask, tmp_path):
    trainer = make_trainer(mask_config=small_mask)
    with pytest.raises(ValueError, match=r"No checkpoint to resume from in .*out"):
        trainer.train(resume_from_checkpoint=True)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises((ValueError, FileNotFoundError), match=r"No checkpoint to resume from|No mask file at"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-9"))
