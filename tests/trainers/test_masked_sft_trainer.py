import pytest
import torch
from trl import SFTConfig, SFTTrainer

from wagle_trl import MaskConfig, MaskedSFTConfig, MaskedSFTTrainer, WeightMask


@pytest.mark.parametrize("masked", [True, False], ids=["mask of all ones", "no mask"])
def test_with_every_weight_selected_it_trains_as_sft_trainer_does(
    masked, make_trainer, tiny_model, tiny_tokenizer, forget_rows, tmp_path
):
    options = dict(max_steps=3, learning_rate=1e-3, adam_epsilon=1e-3, gradient_accumulation_steps=2)
    mask = None
    if masked:
        ones = {name: torch.ones_like(p, dtype=torch.bool) for name, p in tiny_model().named_parameters()}
        mask = WeightMask.from_dense(ones)
    ours = make_trainer("masked_sft", mask=mask, retain_dataset=None, **options)
    ours.train()
    args = SFTConfig(
        output_dir=str(tmp_path / "sft"),
        per_device_train_batch_size=2,
        weight_decay=0.1,
        bf16=False,
        gradient_checkpointing=False,
        lr_scheduler_type="constant",
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        **options,
    )
    theirs = SFTTrainer(tiny_model(), args, train_dataset=forget_rows, processing_class=tiny_tokenizer)
    theirs.train()
    expected = dict(theirs.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        assert torch.allclose(parameter, expected[name], atol=1e-5, rtol=0), name
    for log, other in zip(ours.state.log_history[:3], theirs.state.log_history[:3]):
        assert log["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert log["grad_norm"] == pytest.approx(float(other["grad_norm"]), rel=1e-4)


def test_selected_weights_learn_the_rows(make_trainer):
    trainer = make_trainer(
        "masked_sft",
        mask_config=MaskConfig(mask_score="random", mask_density=0.5),
        max_steps=30,
        learning_rate=5e-3,
        per_device_train_batch_size=6,
    )
    trainer.train()
    assert trainer.state.log_history[29]["loss"] < 0.6 * trainer.state.log_history[0]["loss"]


@pytest.mark.parametrize("score", ["gradient", "snip", "magnitude", "random"])
def test_scores_of_the_training_rows_alone_need_no_retain_rows(score, make_trainer):
    trainer = make_trainer(
        "masked_sft", retain_dataset=None, mask_config=MaskConfig(mask_score=score, mask_density=0.1), max_steps=1
    )
    trainer.train()
    assert trainer.mask.density == pytest.approx(0.1, abs=1e-4)


def test_retain_rows_steer_the_mask(make_trainer, retain_rows, forget_rows):
    config = MaskConfig(mask_score="fisher_ratio", mask_density=0.1)
    masks = []
    for retain in (retain_rows, forget_rows):
        trainer = make_trainer("masked_sft", retain_dataset=retain, mask_config=config)
        masks.append(trainer.compute_mask())
    assert masks[0].jaccard(masks[1]) < 0.9


def test_packing_trains_with_a_ready_mask(make_trainer, small_mask, snapshot, assert_only_selected_moved):
    mask = make_trainer("masked_sft", mask_config=small_mask).compute_mask()
    trainer = make_trainer("masked_sft", mask=mask, packing=True, packing_strategy="wrapped", max_length=16)
    before = snapshot(trainer.model)
    trainer.train()
    assert assert_only_selected_moved(before, trainer.model, mask) > 0.95


def test_forget_rows_choose_the_weights_and_are_not_trained_on(
    tiny_model, tiny_tokenizer, forget_rows, retain_rows, tmp_path
):
    options = {"retain_dataset": retain_rows, "processing_class": tiny_tokenizer, "mask_config": MaskConfig()}
    args = MaskedSFTConfig(str(tmp_path), max_steps=1, report_to="none", gradient_checkpointing=False)
    chosen = MaskedSFTTrainer(tiny_model(), args, train_dataset=retain_rows, forget_dataset=forget_rows, **options)
    direct = MaskedSFTTrainer(tiny_model(), args, train_dataset=forget_rows, **options)
    assert chosen.compute_mask() == direct.compute_mask()
    assert len(chosen.train_dataset) == len(retain_rows)


def test_the_seed_decides_the_first_weights_of_adapters(make_trainer):
    from peft import LoraConfig

    first = [
        make_trainer(seed=seed, peft_config=LoraConfig(r=1, target_modules=["q_proj"])).model.state_dict()
        for seed in (1, 1, 2)
    ]
    (name, *_) = (name for name in first[0] if "lora_A" in name)
    assert first[0][name].equal(first[1][name]) and not first[0][name].equal(first[2][name])
