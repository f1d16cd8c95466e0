"""Bad input gets an error that says what and how to mend it, where possible before any long work."""

import os
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from datasets import Dataset, DatasetDict, IterableDataset

from wagle_trl import MaskConfig, NPOConfig, NPOTrainer, WeightMask
from wagle_trl.trainers import mask_mixin
from wagle_trl.trainers.checks import check_accelerator

from ..support.trainers import OBJECTIVES, TRAINERS

# Data


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("argument", ["train_dataset", "retain_dataset"])
def test_an_empty_set_is_refused(kind, argument, make_trainer, forget_rows):
    with pytest.raises(ValueError, match=f"`{argument}` is empty; pass at least one row"):
        make_trainer(kind, **{argument: forget_rows.select([])})


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("argument", ["train_dataset", "retain_dataset"])
def test_a_missing_set_is_refused(kind, argument, make_trainer):
    with pytest.raises(ValueError, match=f"`{argument}` is required: pass the rows to forget as `train_dataset`"):
        make_trainer(kind, **{argument: None})


@pytest.mark.parametrize("argument", ["train_dataset", "retain_dataset"])
@pytest.mark.parametrize("kind", TRAINERS)
def test_a_streaming_set_is_refused(kind, argument, make_trainer, forget_rows):
    with pytest.raises(ValueError, match=f"`{argument}` is a streaming data set; load it as a `Dataset`"):
        make_trainer(kind, **{argument: forget_rows.to_iterable_dataset()})


def test_a_dictionary_of_splits_is_refused(make_trainer, retain_rows):
    with pytest.raises(ValueError, match="`retain_dataset` must be a `Dataset`, got DatasetDict; pick one split"):
        make_trainer(retain_dataset=DatasetDict({"train": retain_rows}))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_rows_in_both_sets_are_refused(kind, make_trainer, forget_rows, retain_rows):
    both = Dataset.from_list([*retain_rows, forget_rows[2]])
    with pytest.raises(ValueError, match=r"1 rows are in both .* \(first: forget row 2 = retain row 10\); remove"):
        make_trainer(kind, retain_dataset=both)


BLANK = {
    "empty completion": [{"prompt": "Who?", "completion": "Ada"}, {"prompt": "Who?", "completion": " \n"}],
    "no completion": [{"prompt": "Who?", "completion": "Ada"}, {"prompt": "Who?", "completion": None}],
    "all labels ignored": [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
        {"input_ids": [5, 6], "labels": [-100, -100]},
    ],
    "empty text": [{"text": "Ada"}, {"text": ""}],
}


@pytest.mark.parametrize("rows", BLANK.values(), ids=BLANK)
@pytest.mark.parametrize("argument, name", [("train_dataset", "forget"), ("retain_dataset", "retain")])
def test_a_row_without_an_answer_is_named(rows, argument, name, make_trainer):
    with pytest.raises(
        ValueError, match=rf"Row 1 of the {name} set (cannot be used\. It )?has no \w+[;:] .*remove it"
    ):
        make_trainer(**{argument: Dataset.from_list(rows)})


@pytest.mark.parametrize("argument, name", [("train_dataset", "forget"), ("retain_dataset", "retain")])
def test_an_answer_cut_off_by_max_length_is_refused(argument, name, make_trainer):
    rows = [{"prompt": "Who? " * 30, "completion": " Ada"}, {"prompt": "Who?", "completion": " Bo"}]
    with pytest.raises(ValueError, match=f"1 rows of the {name} set have no answer token left within max_length=16"):
        make_trainer(max_length=16, long_rows="truncate", **{argument: Dataset.from_list(rows)})


# Mask options


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_a_density_out_of_range_is_refused(density):
    with pytest.raises(ValueError, match=r"mask_density must be in \(0, 1\], got"):
        MaskConfig(mask_density=density)


def test_an_unknown_score_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(ValueError, match=r"saliency.*fisher_ratio"):
        MaskConfig(mask_score="saliency")


@pytest.mark.parametrize(
    "options", [{"mask_scope": ["*.no_such_layer.*"]}, {"mask_exclude": ["*"]}], ids=["scope", "exclude"]
)
def test_a_scope_that_matches_nothing_is_refused_by_the_constructor(options, make_trainer):
    with pytest.raises(ValueError, match=r"No trainable parameter is in scope.*model\.embed_tokens\.weight"):
        make_trainer(mask_config=MaskConfig(**options))


def test_a_score_that_needs_retain_rows_is_refused_without_them(make_trainer):
    with pytest.raises(ValueError, match="mask_score 'wagle' needs `retain_dataset`; pass one or choose"):
        make_trainer("masked_sft", retain_dataset=None, mask_config=MaskConfig())


def test_a_mask_and_a_mask_config_together_are_refused(make_trainer, small_mask):
    mask = make_trainer(mask_config=small_mask).compute_mask()
    with pytest.raises(ValueError, match=r"Pass either `mask` .* or `mask_config` .*, not both"):
        make_trainer(mask=mask, mask_config=small_mask)


def test_a_head_tied_by_memory_alone_is_refused(make_trainer, tiny_model):
    model = tiny_model()
    model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.data)
    scope = MaskConfig(mask_score="random", mask_scope=["model.embed_tokens.weight"])
    with pytest.raises(
        ValueError, match=r"'model\.embed_tokens\.weight' and 'lm_head\.weight' are two parameters in the same memory"
    ):
        make_trainer(model=model, mask_config=scope).train()


# Mask files


@pytest.mark.parametrize(
    "other, message",
    [
        ({"seed": 1}, "The mask was made for other weights .*compute a new mask"),
        (
            {"num_hidden_layers": 1},
            r"The mask is for another model: it names parameters this one lacks: model\.layers",
        ),
        ({"intermediate_size": 48}, r"The mask is for another model: .* has shape \(48, 32\) here and \(64, 32\) in"),
    ],
    ids=["weights", "layers", "shapes"],
)
def test_a_mask_of_another_model_is_refused(other, message, make_trainer, small_mask, tiny_model):
    mask = make_trainer(mask_config=small_mask).compute_mask()
    with pytest.raises(ValueError, match=message):
        make_trainer(model=tiny_model(**other), mask=mask)


@pytest.mark.parametrize("kept", [0, 5, 200, -1], ids=["nothing", "5 bytes", "200 bytes", "all but one byte"])
def test_a_truncated_mask_file_is_refused(kept, make_trainer, small_mask, tmp_path):
    path = make_trainer(mask_config=small_mask).compute_mask().save(tmp_path / "mask.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"is not a readable safetensors file .* it may be truncated"):
        make_trainer(mask=path)


def test_a_folder_without_a_mask_is_refused(make_trainer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No mask file at .*wagle_mask\.safetensors; give a"):
        make_trainer(mask=tmp_path)


# Numbers


def poison(trainer, name="model.layers.1.mlp.down_proj.weight"):
    with torch.no_grad():
        dict(trainer.model.named_parameters())[name][0, 0] = float("nan")


def test_nan_gradients_stop_training_and_change_nothing(make_trainer, small_mask, snapshot):
    mask = make_trainer(mask_config=small_mask).compute_mask()
    trainer = make_trainer(mask=mask)
    poison(trainer)
    before = {name: value.view(torch.int32) for name, value in snapshot(trainer.model).items()}
    with pytest.raises(
        ValueError, match=r"The gradient of 'model\.layers.* is NaN or infinite; no weight was changed"
    ):
        trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter.detach().view(torch.int32), before[name]), name
    assert all(not parameter._post_accumulate_grad_hooks for parameter in trainer.model.parameters())


def test_an_absurd_learning_rate_ends_in_an_error_and_finite_weights(make_trainer, small_mask):
    trainer = make_trainer("grad_diff", mask_config=small_mask, learning_rate=1e30, max_steps=5)
    with pytest.raises(
        ValueError, match=r"is NaN or infinite; no weight was changed in this step. Lower the learning"
    ):
        trainer.train()
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_nan_in_attribution_names_the_parameter(make_trainer):
    trainer = make_trainer(mask_config=MaskConfig())
    poison(trainer)
    with pytest.raises(
        ValueError, match=r"The gradient of 'model\..*' is NaN or infinite; load the model in bfloat16"
    ):
        trainer.train()
    assert trainer.mask is None


# Where and how


@pytest.mark.parametrize("kind", TRAINERS)
def test_an_unwritable_output_directory_is_refused(kind, make_trainer, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"Cannot write to output_dir '.*file/out': Not a directory"):
        make_trainer(kind, output_dir=str(tmp_path / "file" / "out"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_directory_without_permission_is_refused(make_trainer, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(ValueError, match=r"Cannot write to output_dir '.*out': Permission denied"):
        make_trainer()


UNSUPPORTED = {
    "reentrant checkpointing": (
        dict(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}),
        "Reentrant gradient checkpointing is not supported with a mask; set use_reentrant to False",
    ),
    "another optimizer": (
        dict(optim="adafactor"),
        r"A mask trains with its own AdamW; leave `optim` .*adamw_torch.* \(got 'adafactor'\)",
    ),
}


@pytest.mark.parametrize("options, message", UNSUPPORTED.values(), ids=UNSUPPORTED)
@pytest.mark.parametrize("kind", TRAINERS)
def test_what_a_mask_cannot_do_is_refused(kind, options, message, make_trainer, small_mask):
    with pytest.raises(ValueError, match=message):
        make_trainer(kind, mask_config=small_mask, **options)


def test_fp16_is_refused_with_a_mask(make_trainer, make_config, small_mask):
    args = make_config("npo", bf16=False)
    args.fp16 = True  # a config on a CPU does not let it pass
    with pytest.raises(ValueError, match="fp16 training scales gradients, which a mask cannot follow; use bf16"):
        make_trainer(args=args, mask_config=small_mask)


def test_a_model_in_fp16_is_refused_with_a_mask(make_trainer, small_mask, tiny_model):
    with pytest.raises(ValueError, match=r"'model\..*' is torch.float16; load the model in bfloat16 or float32"):
        make_trainer(model=tiny_model(dtype=torch.float16), mask_config=small_mask)


def test_fp16_from_the_launcher_is_refused_with_a_mask():
    with pytest.raises(
        ValueError, match="fp16 training scales gradients, which a mask cannot follow; launch with bf16"
    ):
        check_accelerator(SimpleNamespace(mixed_precision="fp16", distributed_type=DistributedType.NO))


def test_fsdp_is_refused_with_a_mask():
    with pytest.raises(ValueError, match="A mask cannot be trained with FSDP yet"):
        check_accelerator(SimpleNamespace(mixed_precision="no", distributed_type=DistributedType.FSDP))


@pytest.mark.parametrize("option", [{"loss_type": "dft"}, {"label_smoothing_factor": 0.1}])
def test_options_of_another_loss_are_refused_for_unlearning(option, tmp_path):
    with pytest.raises(ValueError, match="Unlearning has its own loss; leave `loss_type`"):
        NPOConfig(output_dir=str(tmp_path), bf16=False, **option)


def test_a_loss_function_is_refused_for_unlearning(tiny_model, forget_rows, retain_rows):
    with pytest.raises(ValueError, match="Unlearning has its own loss; subclass and override `forget_loss`"):
        NPOTrainer(tiny_model(), train_dataset=forget_rows, retain_dataset=retain_rows, compute_loss_func=max)


def test_an_optimizer_of_the_users_own_is_refused_with_a_mask(make_trainer, small_mask, tiny_model):
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"A mask trains with its own AdamW; .* and pass no optimizer"):
        make_trainer(model=model, mask_config=small_mask, optimizers=(optimizer, None))


@pytest.mark.parametrize("option", ["packing", "eval_packing", "padding_free"])
def test_packing_is_refused_for_unlearning(option, tmp_path):
    with pytest.raises(ValueError, match="Unlearning needs one row per sample; set `packing`"):
        NPOConfig(output_dir=str(tmp_path), bf16=False, **{option: True})


def test_packing_is_refused_where_a_mask_is_computed(make_trainer, small_mask):
    with pytest.raises(ValueError, match="Attribution needs one row per sample; set `packing=False`"):
        make_trainer("masked_sft", mask_config=small_mask, packing=True, packing_strategy="wrapped", max_length=16)


def test_errors_come_before_attribution(make_trainer, monkeypatch, forget_rows, tmp_path):
    """One of each kind above, with everything that takes time made to fail."""

    def refuse(*args, **kwargs):
        raise AssertionError("long work began")

    monkeypatch.setattr(mask_mixin, "compute_mask", refuse)
    for arguments in (
        dict(retain_dataset=forget_rows),
        dict(mask_config=MaskConfig(mask_scope=["nothing"])),
        dict(mask=WeightMask.from_dense({"nothing": torch.ones(3, dtype=torch.bool)})),
    ):
        with pytest.raises(ValueError):
            make_trainer(**arguments)
    with pytest.raises(ValueError, match="No whole checkpoint to resume from"):
        make_trainer(mask_config=MaskConfig()).train(resume_from_checkpoint=True)


# Model, tokenizer, rows and options against each other


@pytest.mark.parametrize("kind", [*OBJECTIVES, "masked_sft"])
def test_a_token_without_an_embedding_is_refused(kind, make_trainer, tiny_model):
    with pytest.raises(
        ValueError, match=r"of row \d+ of the \w+ set has the id 3\d\d, and the model has 300 embeddings"
    ):
        make_trainer(kind, model=tiny_model(vocab_size=300))


def test_batches_that_make_no_step_are_refused(make_trainer):
    with pytest.raises(ValueError, match="With dataloader_drop_last, 6 training rows in batches of 8 make no step"):
        make_trainer(per_device_train_batch_size=8, dataloader_drop_last=True)


def test_a_frozen_model_without_a_mask_is_refused(make_trainer, tiny_model):
    with pytest.raises(ValueError, match="Every parameter is frozen and there is no mask"):
        make_trainer(model=tiny_model().requires_grad_(False), mask_config=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_sampling_strategy": "group_by_length"}, "pairs forget and retain rows at random"),
        ({"average_tokens_across_devices": False}, "divides by the tokens of all devices"),
        ({"optim_args": "eps=1e-6"}, "A mask trains with its own AdamW, which reads no optim_args"),
        ({"optim_target_modules": ["mlp"]}, "A mask trains with its own AdamW, which reads no optim_target_modules"),
    ],
)
def test_options_that_would_not_be_read_are_refused(options, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        make_trainer(mask_config=MaskConfig(), **options)


def test_rows_that_stream_from_a_generator_can_be_evaluated(make_trainer, retain_rows):
    streamed = IterableDataset.from_generator(lambda: iter(retain_rows.to_list()))
    trainer = make_trainer(eval_dataset={"kept": retain_rows, "streamed": streamed})
    metrics = trainer.evaluate()
    assert metrics["eval_streamed_loss"] == pytest.approx(metrics["eval_kept_loss"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps 0: no step would be made"),
        ({"num_train_epochs": 0, "max_steps": -1}, "num_train_epochs is 0 and max_steps -1: no step would be made"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1, got 0"),
        ({"retain_weight": float("nan")}, "retain_weight must not be negative or infinite, got nan"),
        ({"beta": float("inf")}, "beta must be positive and finite, got inf"),
    ],
)
def test_options_that_make_no_step_or_no_number_are_refused(options, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)


def test_fine_tuning_takes_the_rows_that_trl_takes(make_trainer, retain_rows):
    rows = Dataset.from_list([{"text": "Ada lives in Oslo."}, {"text": ""}])
    streamed = IterableDataset.from_generator(lambda: iter(retain_rows.to_list()))
    trainer = make_trainer("masked_sft", train_dataset=rows, eval_dataset={"kept": retain_rows, "streamed": streamed})
    metrics = trainer.evaluate()
    assert metrics["eval_streamed_loss"] == pytest.approx(metrics["eval_kept_loss"])
