import copy
import inspect
import json
import math
import re
from dataclasses import dataclass, field

import pytest
import torch
from peft import LoraConfig, PeftModel
from trl import SFTTrainer

from wagle_trl import MaskConfig, MaskedSFTTrainer, NPOTrainer, UnlearningConfig, UnlearningTrainer, WeightMask
from wagle_trl.papers import Paper

from ..support.trainers import OBJECTIVES, TRAINERS, trainer_class

# Freezing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "scope, tied", [(None, False), (["*"], False), (["*"], True)], ids=["blocks", "embeddings", "tied embeddings"]
)
@pytest.mark.parametrize("kind", TRAINERS)
def test_unselected_weights_stay_bit_identical(
    kind, scope, tied, dtype, make_trainer, tiny_model, snapshot, assert_only_selected_moved
):
    model = tiny_model(dtype=dtype, tie_word_embeddings=tied)
    before = snapshot(model)
    config = MaskConfig(mask_score="random", mask_density=0.3, mask_scope=scope)
    trainer = make_trainer(kind, model, mask_config=config, gradient_accumulation_steps=2, weight_decay=0.1)
    trainer.train()
    # Rows of tokens that never occur have weight decay alone, which in bf16 is too small to show in a few steps
    rounds = dtype == torch.bfloat16
    assert assert_only_selected_moved(before, trainer.model, trainer.mask) > (0.7 if rounds else 0.95)
    embeddings = [name for name in trainer.mask.bits if "embed_tokens" in name or "lm_head" in name]
    assert len(embeddings) == (0 if scope is None else 1 if tied else 2)


def test_8_bit_moments_leave_unselected_weights_alone_and_spare_norms_and_embeddings(
    make_trainer, tiny_model, snapshot, assert_only_selected_moved
):
    model = tiny_model(dtype=torch.bfloat16, hidden_size=64, vocab_size=320)
    before = snapshot(model)
    config = MaskConfig(mask_score="random", mask_density=0.3, mask_scope=["*"])
    trainer = make_trainer("npo", model, mask_config=config, optim="adamw_8bit")
    trainer.train()
    assert assert_only_selected_moved(before, trainer.model, trainer.mask) > 0.7
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    in_8_bits = {names[p] for p, state in trainer.optimizer.state.items() if state["exp_avg"].dtype == torch.int8}
    assert in_8_bits == {
        n for n in names.values() if "proj" in n and dict(model.named_parameters())[n].numel() >= 4096
    }
    assert any("mlp" in name for name in in_8_bits) and not any(
        "embed" in name or "head" in name for name in in_8_bits
    )


def test_a_mask_of_zeros_leaves_every_bit_as_it_was(make_trainer, tiny_model, snapshot):
    model = tiny_model()
    before = snapshot(model)
    mask = WeightMask.from_dense({n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.named_parameters()})
    make_trainer(model=model, mask=mask, learning_rate=0.1).train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_attribution_and_training_touch_only_what_the_default_mask_selects(
    make_trainer, snapshot, assert_only_selected_moved
):
    trainer = make_trainer(mask_config=MaskConfig())
    before = snapshot(trainer.model)
    trainer.train()
    assert trainer.mask.density == pytest.approx(0.05, abs=1e-4)
    assert assert_only_selected_moved(before, trainer.model, trainer.mask) > 0.95


@pytest.mark.parametrize("kind", TRAINERS)
def test_without_a_mask_every_parameter_trains(kind, make_trainer, snapshot):
    trainer = make_trainer(kind)
    before = snapshot(trainer.model)
    trainer.train()
    assert trainer.mask is None
    for name, parameter in trainer.model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_training_restores_requires_grad_and_leaves_no_hooks(make_trainer):
    config = MaskConfig(mask_score="random", mask_scope=["*.mlp.up_proj.*"])
    trainer = make_trainer(mask_config=config)
    trainer.train()
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert all(not parameter._post_accumulate_grad_hooks for parameter in trainer.model.parameters())


# Gradient accumulation


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "dense"])
@pytest.mark.parametrize("kind", ["npo", "grad_diff"])
def test_batch_4_equals_four_accumulated_batches_of_1(kind, masked, make_trainer, small_mask, snapshot, tiny_model):
    """6 rows: an epoch is a step of 4 rows and one of 2, so that the last step's counts differ too."""
    mask_config = small_mask if masked else None
    # A large epsilon keeps Adam from turning rounding noise of tiny gradients into whole steps
    options = dict(mask_config=mask_config, max_steps=4, learning_rate=1e-3, adam_epsilon=1e-3)
    one = make_trainer(kind, per_device_train_batch_size=4, **options)
    assert len({len(row) for row in one.train_dataset["input_ids"]}) > 2
    one.train()
    four = make_trainer(kind, per_device_train_batch_size=1, gradient_accumulation_steps=4, **options)
    four.train()
    before, ours, theirs = snapshot(tiny_model()), snapshot(one.model), snapshot(four.model)
    assert max((ours[name] - before[name]).abs().max() for name in ours) > 1e-3
    difference = max((ours[name] - theirs[name]).abs().max() for name in ours)
    assert difference < 1e-5


def test_padding_is_not_counted_in_the_loss(make_trainer, tiny_model, log_probs_of, batches_of):
    trainer = make_trainer("grad_diff", per_device_train_batch_size=6, max_steps=1)
    ((forget, retain),) = batches_of(trainer)
    assert len({len(row["input_ids"]) for row in retain}) > 1
    base = tiny_model()
    trainer.train()
    for stream, sign, rows in (("forget", -1, forget), ("retain", 1, retain)):
        singles = torch.cat([log_probs_of(base, row) for row in rows])
        assert trainer.state.log_history[0][f"{stream}_loss"] == pytest.approx(-sign * singles.mean().item(), rel=1e-5)


# Pairing


@pytest.mark.parametrize("resume", [False, True], ids=["at once", "resumed"])
def test_every_epoch_has_its_own_order_and_retain_rows_go_on(resume, make_trainer, tmp_path):
    options = dict(max_steps=9, save_strategy="steps", save_steps=4)
    trainer = make_trainer(**options)
    if resume:
        trainer.train()
        trainer = make_trainer(**options)
    batches = []
    collator = trainer.data_collator
    trainer.data_collator = lambda rows: batches.append([row["input_ids"] for row in rows]) or collator(rows)
    trainer.prepare_training(None)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4") if resume else None)
    batches = batches[-5:] if resume else batches[-9:]
    ids = {"forget": list(trainer.train_dataset["input_ids"]), "retain": list(trainer.retain_dataset["input_ids"])}
    forget = [ids["forget"].index(row) for rows in batches for row in rows[:2]]
    retain = [ids["retain"].index(row) for rows in batches for row in rows[2:]]
    pairs = []
    for epoch in range(3):
        trainer._pair_sampler.epoch = epoch
        pairs += [(i, j) for i, j, _ in trainer._pair_sampler]
    assert list(zip(forget, retain)) == pairs[8:] if resume else pairs
    assert sorted(forget[-6:]) == list(range(6))
    assert forget[-6:] != forget[-12:-6]
    if not resume:
        assert sorted(retain[:10]) == list(range(10))


# Logs


@pytest.mark.parametrize("kind", ["npo", "grad_diff"])
def test_logs_tell_both_losses_and_accuracies_and_the_selected_gradient_norm(kind, make_trainer, small_mask):
    trainer = make_trainer(kind, mask_config=small_mask, retain_weight=2.0)
    trainer.train()
    log = trainer.state.log_history[0]
    expected = {
        "loss",
        "grad_norm",
        "learning_rate",
        "forget_loss",
        "retain_loss",
        "forget_token_accuracy",
        "retain_token_accuracy",
        "selected_moved",
        "num_tokens",
    }
    assert expected <= set(log)
    assert log["loss"] == pytest.approx(log["forget_loss"] + 2.0 * log["retain_loss"], rel=1e-5)
    assert log["grad_norm"] > 0
    assert log["selected_moved"] > 0.95


def test_logged_grad_norm_is_that_of_the_selected_gradients(
    make_trainer, small_mask, tiny_model, log_probs_of, batches_of
):
    trainer = make_trainer("grad_diff", mask_config=small_mask, max_steps=1, retain_weight=1.0)
    base, (forget, retain) = tiny_model(), batches_of(trainer)[0]
    trainer.train()
    losses = [-torch.cat([log_probs_of(base, row) for row in rows]).mean() for rows in (forget, retain)]
    (losses[1] - losses[0]).backward()
    selected = [p.grad[trainer.mask.dense(n)] for n, p in base.named_parameters() if n in trainer.mask.bits]
    whole = torch.cat([p.grad.flatten() for p in base.parameters()]).norm()
    norm = torch.cat(selected).norm()
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert norm < 0.9 * whole


def test_token_accuracies_tell_forget_from_retain(learned, make_trainer, small_mask):
    trainer = make_trainer(model=learned, mask_config=small_mask, max_steps=1)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["retain_token_accuracy"] > 0.95
    assert log["forget_token_accuracy"] < 0.8


@pytest.mark.parametrize("during_training", [True, False], ids=["during training", "on call"])
def test_evaluation_names_the_metrics_of_each_split(
    during_training, learned, make_trainer, small_mask, forget_rows, retain_rows, log_probs_of
):
    trainer = make_trainer(
        model=learned,
        mask_config=small_mask,
        eval_dataset={"forget": forget_rows, "retain": retain_rows},
        eval_strategy="epoch",
        learning_rate=1e-9,
        per_device_eval_batch_size=4,
    )
    if during_training:
        trainer.train()
        metrics = {key: value for log in trainer.state.log_history for key, value in log.items() if "eval_" in key}
    else:
        metrics = trainer.evaluate()
    assert metrics["eval_retain_mean_token_accuracy"] > 0.95
    assert metrics["eval_forget_mean_token_accuracy"] < 0.8
    assert "eval_mean_token_accuracy" not in metrics
    rows = trainer.eval_dataset["forget"]
    loss = -torch.cat([log_probs_of(learned, row) for row in rows]).mean().item()
    assert metrics["eval_forget_loss"] == pytest.approx(loss, rel=0.05)  # a mean over batches, not tokens
    assert metrics["eval_retain_loss"] < 0.5 < metrics["eval_forget_loss"]


# Data formats

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def in_format(name, rows, tokenizer):
    def convert(row):
        prompt, completion = row["prompt"], row["completion"]
        user = [{"role": "user", "content": prompt}]
        assistant = [{"role": "assistant", "content": completion.strip()}]
        if name == "text":
            return {"text": prompt + completion}
        if name == "messages":
            return {"messages": user + assistant}
        if name == "conversational prompt-completion":
            return {"prompt": user, "completion": assistant}
        if name == "tokenized":
            ids = tokenizer(prompt + completion)["input_ids"]
            return {"input_ids": ids, "labels": [-100] * 5 + ids[5:]}
        return row

    return rows.map(convert, remove_columns=[] if name == "prompt-completion" else rows.column_names)


FORMATS = ["text", "prompt-completion", "messages", "conversational prompt-completion", "tokenized"]


# Each with itself and with the next, so that every format meets another on either side
@pytest.mark.parametrize(
    "forget, retain",
    [(a, b) for i, a in enumerate(FORMATS) for b in (a, FORMATS[(i + 1) % len(FORMATS)])],
)
def test_every_data_format_and_any_two_of_them_train(
    forget, retain, make_trainer, tiny_tokenizer, forget_rows, retain_rows
):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE
    trainer = make_trainer(
        train_dataset=in_format(forget, forget_rows, tokenizer),
        retain_dataset=in_format(retain, retain_rows, tokenizer),
        processing_class=tokenizer,
        max_steps=1,
    )
    trained_on = {
        "text": "Question: Where does {} live?\nAnswer: {} lives in {}.</s>",
        "prompt-completion": " {1} lives in {2}.</s>",
        "messages": "{1} lives in {2}.</s>",  # of a conversation, the last message
        "conversational prompt-completion": "{1} lives in {2}.</s>",
    }
    for name, prepared, person, town in (
        (forget, trainer.train_dataset, "Ada", "Oslo"),
        (retain, trainer.retain_dataset, "Gus", "Oslo"),
    ):
        labels = [label for label in prepared[0]["labels"] if label != -100]
        if name == "tokenized":
            assert prepared[0]["labels"] == [-100] * 5 + prepared[0]["input_ids"][5:]
        else:
            assert tokenizer.decode(labels) == trained_on[name].format(person, person, town)
    trainer.train()
    assert trainer.state.log_history[0]["forget_loss"] == pytest.approx(13.8629, abs=1e-3)


def test_a_chat_template_with_todays_date_gives_the_same_tokens_every_day(
    make_trainer, tiny_tokenizer, forget_rows, retain_rows, monkeypatch
):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE
    rows = {
        "train_dataset": in_format("messages", forget_rows, tokenizer),
        "retain_dataset": in_format("conversational prompt-completion", retain_rows, tokenizer),
    }

    class FakeClock:
        year = 1999

        @classmethod
        def now(cls):
            import datetime

            return datetime.datetime(cls.year, 1, 2)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", FakeClock)
    rendered = tokenizer.apply_chat_template(rows["train_dataset"][0]["messages"], tokenize=False)
    assert rendered.startswith("02 Jan 1999")
    trainer = make_trainer(processing_class=tokenizer, **rows)
    FakeClock.year = 2001
    later = make_trainer(processing_class=tokenizer, **rows)
    assert trainer.train_dataset["input_ids"] == later.train_dataset["input_ids"]
    assert trainer.retain_dataset["input_ids"] == later.retain_dataset["input_ids"]
    assert tokenizer.decode(trainer.train_dataset[0]["input_ids"]).startswith("26 Jul 2024")
    assert tokenizer.chat_template.startswith("{{ strftime_now")


# PEFT


@pytest.fixture
def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize("kind", ["npo", "grad_diff"])
def test_adapters_alone_train_with_peft(kind, make_trainer, tiny_model, snapshot, lora):
    base = tiny_model()
    before = snapshot(base)
    trainer = make_trainer(kind, base, peft_config=lora)
    trainer.train()
    after = {name: p for name, p in trainer.model.get_base_model().named_parameters() if "lora_" not in name}
    for name, value in before.items():
        renamed = next(other for other in (name, name.replace(".weight", ".base_layer.weight")) if other in after)
        assert torch.equal(after[renamed], value), name
    assert all(bool(p.abs().sum() > 0) for name, p in trainer.model.named_parameters() if "lora_B" in name)


def test_with_peft_a_mask_selects_adapter_weights(
    make_trainer, tiny_model, snapshot, assert_only_selected_moved, lora, tmp_path
):
    trainer = make_trainer(peft_config=lora, mask_config=MaskConfig(mask_score="random", mask_density=0.5))
    before = snapshot(trainer.model)
    trainer.train()
    assert all("lora_" in name for name in trainer.mask.bits)
    # A selected weight of A has no gradient at the first step, as B starts at zero: weight decay moves it
    assert assert_only_selected_moved(before, trainer.model, trainer.mask) > 0.95
    trainer.save_model(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")
    trained = snapshot(trainer.model)
    for name, value in loaded.named_parameters():
        assert torch.equal(value, trained[name]), name


# Masks from files


@pytest.mark.parametrize("form", ["object", "file", "folder"])
def test_a_ready_mask_can_be_passed_as_an_object_a_file_or_a_folder(form, make_trainer, small_mask, tmp_path):
    first = make_trainer(mask_config=small_mask, max_steps=1)
    first.train()
    file = first.mask.save(tmp_path / "masks")
    source = {"object": first.mask, "file": str(file), "folder": tmp_path / "masks"}[form]
    second = make_trainer(mask=source, max_steps=1)
    assert second.mask == first.mask
    second.train()
    ours, theirs = dict(first.model.named_parameters()), dict(second.model.named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_output_directory_holds_model_mask_and_report(make_trainer, small_mask, tmp_path, tiny_model, snapshot):
    trainer = make_trainer(mask_config=small_mask)
    trainer.train()
    trainer.save_model()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "wagle_mask.safetensors", "wagle_report.json"} <= names
    assert WeightMask.load(tmp_path / "out") == trainer.mask
    loaded = type(trainer.model).from_pretrained(tmp_path / "out")
    saved = snapshot(trainer.model)
    assert all(torch.equal(p, saved[name]) for name, p in loaded.named_parameters())


def test_checkpoints_hold_the_mask_and_the_reference(make_trainer, small_mask, tmp_path):
    make_trainer(mask_config=small_mask, save_strategy="steps", save_steps=2).train()
    names = {path.name for path in (tmp_path / "out" / "checkpoint-2").iterdir()}
    assert {"wagle_mask.safetensors", "wagle_reference.safetensors", "optimizer.pt", "model.safetensors"} <= names


# Configs


@pytest.mark.parametrize("kind", TRAINERS)
def test_an_sft_config_is_taken_and_its_options_kept(kind, make_trainer, tmp_path):
    from trl import SFTConfig

    args = SFTConfig(
        output_dir=str(tmp_path / "out"),
        learning_rate=3e-5,
        max_steps=1,
        max_length=99,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        lr_scheduler_type="cosine",
        save_strategy="no",
    )
    trainer = make_trainer(kind, args=args)
    assert type(trainer.args) is trainer.config_class
    for name in ("output_dir", "learning_rate", "max_length", "bf16", "lr_scheduler_type", "max_steps"):
        assert getattr(trainer.args, name) == getattr(args, name), name
    trainer.train()
    assert trainer.state.global_step == 1


def test_without_args_the_output_directory_is_named_after_model_and_trainer(
    tiny_model, tiny_tokenizer, forget_rows, retain_rows, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    model.config._name_or_path = "someone/tiny"
    trainer = NPOTrainer(model, train_dataset=forget_rows, retain_dataset=retain_rows, processing_class=tiny_tokenizer)
    assert trainer.args.output_dir == "tiny-NPO"


# An objective of one's own


@dataclass
class AscentConfig(UnlearningConfig):
    """Gradient ascent on what the model says more often than a share of what it said."""

    share: float = field(default=0.5, metadata={"help": "Where ascent ends, as a share of the reference."})


class AscentTrainer(UnlearningTrainer):
    _name = "Ascent"
    _tag_names = ["trl", "wagle-trl", "unlearning", "ascent"]
    _paper = Paper("2501.00001", "Ascent", "Climber, Ann")
    config_class = AscentConfig
    reference = "log_probs"

    def forget_loss(self, batch):
        forget = batch.forget
        above = (forget.log_probs - forget.reference_log_probs).detach() > math.log(self.args.share)
        return (forget.log_probs * above).sum() / forget.num_tokens


def test_an_objective_of_ones_own_is_one_class_and_reaches_report_and_card(
    make_trainer, tiny_model, tiny_tokenizer, forget_rows, retain_rows, small_mask, tmp_path
):
    out = tmp_path / "own"
    args = AscentConfig(
        str(out),
        share=0.25,
        retain_weight=1.0,
        warmup_steps=0,
        max_steps=4,
        logging_steps=1,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        bf16=False,
    )
    trainer = AscentTrainer(
        tiny_model(),
        args,
        train_dataset=forget_rows,
        retain_dataset=retain_rows,
        processing_class=tiny_tokenizer,
        mask_config=small_mask,
    )
    trainer.train()
    logs = [entry["forget_loss"] for entry in trainer.state.log_history if "forget_loss" in entry]
    probabilities = [
        entry["forget_probability"] for entry in trainer.state.log_history if "forget_probability" in entry
    ]
    assert probabilities[-1] < probabilities[0] and logs
    trainer.save_model()
    trainer.create_model_card()
    report, card = json.loads((out / "wagle_report.json").read_text()), (out / "README.md").read_text()
    assert report["objective"] == "Ascent" and report["options"]["share"] == 0.25
    assert (
        re.search(r"share *\| *0.25", card)
        and "[arXiv 2501.00001]" in card
        and "author        = {Climber, Ann}" in card
    )


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_what_sft_trainer_takes_by_position_stays_there_and_all_else_is_a_keyword(kind):
    parameters = inspect.signature(trainer_class(kind)).parameters
    of_sft = list(inspect.signature(SFTTrainer).parameters)
    assert list(parameters)[: len(of_sft)] == of_sft
    assert {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY} == {
        "retain_dataset",
        "mask_config",
        "mask",
    }


def test_the_signature_repeats_that_of_masked_sft_trainer_without_forget_dataset():
    own, of_base = (dict(inspect.signature(base).parameters) for base in (UnlearningTrainer, MaskedSFTTrainer))
    del of_base["forget_dataset"]  # the rows to forget are `train_dataset`
    assert own == of_base  # names, defaults, annotations
