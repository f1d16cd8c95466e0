"""Where the hidden states of the reference come from, what is refused, and rows, models and runs of every kind with them."""

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from wagle_trl import MaskConfig, WeightMask
from wagle_trl.losses.lm_head import OwnHead
from wagle_trl.unlearning import state_reference
from wagle_trl.unlearning.state_reference import ROW_COLUMN

LORA = dict(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def retain_losses(trainer):
    return [entry["retain_loss"] for entry in trainer.state.log_history if "retain_loss" in entry]


# Choice


@pytest.mark.parametrize("max_steps, way", [(5, "swap"), (30, "stored")])
def test_rows_that_are_visited_more_than_once_are_stored(max_steps, way, make_trainer, small_mask):
    """10 retain rows in batches of 2; 6 forget rows, that is 3 steps per epoch."""
    trainer = make_trainer("npo", retain_loss="kl", mask_config=small_mask, max_steps=max_steps)
    assert trainer.state_reference.ways == {"retain": way}


def test_two_kinds_of_rows_may_go_two_ways(make_trainer, small_mask, snapshot):
    """5 steps are 10 forget rows of 6, and 10 retain rows of 10."""

    def trained(**options):
        trainer = make_trainer("undial", retain_loss="kl", mask_config=small_mask, max_steps=5, **options)
        trainer.train()
        return trainer

    mixed, swapped = trained(), trained(reference_states="swap")
    assert mixed.state_reference.ways == {"forget": "stored", "retain": "swap"}
    assert retain_losses(mixed) == pytest.approx(retain_losses(swapped), rel=1e-3, abs=1e-6)
    ours, theirs = snapshot(mixed.model), snapshot(swapped.model)
    assert max((ours[name] - theirs[name]).abs().max() for name in ours) < 1e-4


def test_too_much_is_swapped_and_without_a_mask_nothing_can_be(make_trainer, small_mask, monkeypatch):
    monkeypatch.setattr(state_reference, "STORED_BYTES", 100)
    assert make_trainer("undial", mask_config=small_mask).state_reference.ways == {"forget": "swap"}
    assert make_trainer("undial").state_reference.ways == {"forget": "stored"}
    with pytest.raises(ValueError, match="there is no mask; leave it at 'auto'"):
        make_trainer("undial", reference_states="swap")


def test_rows_of_another_trainer_bring_no_places_in_its_file(make_trainer, small_mask):
    options = dict(retain_loss="kl", reference_states="stored", mask_config=small_mask)
    first = make_trainer("undial", **options)
    first.train()
    assert ROW_COLUMN in first.train_dataset.column_names
    second = make_trainer("npo", train_dataset=first.train_dataset, **options)
    second.train()
    assert ROW_COLUMN not in second.train_dataset.column_names
    assert abs(retain_losses(second)[0]) < 1e-6


# Adapters


def test_new_adapters_are_switched_off_and_the_rest_is_the_base_bit_for_bit(make_trainer, snapshot):
    trainer = make_trainer("npo", retain_loss="kl", peft_config=LoraConfig(**LORA))
    trainer.train()
    assert trainer.state_reference.ways == {"retain": "adapters"} and retain_losses(trainer)[0] == 0
    rows = {key: torch.tensor(trainer.train_dataset[0][key])[None] for key in ("input_ids", "labels")}
    wanted = make_trainer("npo", retain_loss="kl").state_reference._forward(rows)
    before = snapshot(trainer.model)
    assert not torch.equal(trainer.state_reference._forward(rows), wanted)
    with trainer.state_reference._before_unlearning():
        assert torch.equal(trainer.state_reference._forward(rows), wanted)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(trainer.model).items())


@pytest.mark.parametrize("initial", [False, "pissa"], ids=["trained", "pissa"])
def test_adapters_that_say_something_already_belong_to_the_reference(initial, make_trainer, tiny_model):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(tiny_model(), LoraConfig(**LORA, init_lora_weights=initial))
    trainer = make_trainer("undial", model, retain_loss="kl")
    trainer.train()
    assert set(trainer.state_reference.ways.values()) == {"stored"}
    assert abs(retain_losses(trainer)[0]) < 1e-6 < retain_losses(trainer)[-1]


# All weights


@pytest.mark.parametrize("tied", [False, True])
def test_where_the_head_trains_the_reference_keeps_that_of_the_base(tied, make_trainer, tiny_model):
    trainer = make_trainer("npo", tiny_model(tie_word_embeddings=tied), retain_loss="kl")
    trainer.train()
    wanted = tiny_model(tie_word_embeddings=tied).lm_head.weight
    assert torch.equal(trainer.state_reference.head.weight, wanted)
    assert not torch.equal(trainer.state_reference.split.head.weight, wanted)
    assert abs(retain_losses(trainer)[0]) < 1e-6 < retain_losses(trainer)[-1]


class Clamped(nn.Linear):
    """A head that TRL gets wrong."""

    def forward(self, hidden):
        return super().forward(hidden).clamp(-1, 1)


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "dense"])
def test_a_head_that_is_no_matrix_is_the_models_own(masked, make_trainer, small_mask, tiny_model):
    model = tiny_model()
    model.lm_head.__class__ = Clamped
    options = dict(retain_loss="kl", reference_states="swap", mask_config=small_mask) if masked else {}
    trainer = make_trainer("npo", model, **{"retain_loss": "kl"} | options)
    trainer.train()
    assert isinstance(trainer.state_reference.head, OwnHead)
    assert abs(retain_losses(trainer)[0]) < 1e-6 < retain_losses(trainer)[-1]


# Refused


@pytest.mark.parametrize("variant", [("npo", {"retain_loss": "kl"}), ("undial", {})], ids=["kl", "undial"])
@pytest.mark.parametrize("tied, scope", [(False, "lm_head*"), (True, "*embed_tokens*")])
def test_a_mask_that_may_select_the_head_is_refused_and_one_that_selects_none_of_it_trains(
    tied, scope, variant, make_trainer, tiny_model
):
    kind, options = variant
    model = tiny_model(tie_word_embeddings=tied)
    message = r"so the LM head must not train; leave the head, .* out of the mask's scope \(--mask_exclude\)"
    head = MaskConfig(mask_score="random", mask_density=0.3, mask_scope=[scope])
    with pytest.raises(ValueError, match=message):
        make_trainer(kind, model, mask_config=head, **options)

    norm, head_name = "model.norm.weight", "model.embed_tokens.weight" if tied else "lm_head.weight"
    shapes = {name: model.get_parameter(name).shape for name in (norm, head_name)}
    masks = [
        WeightMask.from_dense({name: torch.full(shape, name == chosen) for name, shape in shapes.items()})
        for chosen in (head_name, norm)
    ]
    with pytest.raises(ValueError, match=message):
        make_trainer(kind, model, mask=masks[0], **options)
    trainer = make_trainer(kind, model, mask=masks[1], reference_states="swap", **options)
    trainer.train()
    assert trainer.state_reference.ways and not torch.equal(trainer.model.model.norm.weight, torch.ones(32))


@pytest.mark.parametrize(
    "config, message",
    [
        (
            LoraConfig(**LORA, modules_to_save=["lm_head"]),
            "the LM head must not train; leave the head, .* or the adapters",
        ),
        (LoraConfig(**LORA | {"target_modules": ["lm_head"]}), "PEFT adapter to `lm_head` is not supported"),
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "virtual tokens of PromptTuningConfig"),
        (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "virtual tokens of PrefixTuningConfig"),
    ],
)
def test_adapters_that_change_the_head_or_the_places_of_tokens_are_refused(config, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        make_trainer("npo", retain_loss="kl", peft_config=config)


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "dense"])
def test_a_run_of_another_base_is_not_resumed_nor_its_checkpoint_taken_for_the_base(
    masked, make_trainer, small_mask, tiny_model, tmp_path
):
    options = {"retain_loss": "kl", "mask_config": small_mask if masked else None}
    make_trainer("npo", **options, max_steps=1, save_strategy="steps", save_steps=1).train()
    checkpoint = str(tmp_path / "out" / "checkpoint-1")
    for model in (tiny_model(seed=1), checkpoint):
        with pytest.raises(ValueError, match=r"is not the base that|needs the base model") as error:
            make_trainer("npo", model, **options).train(resume_from_checkpoint=checkpoint)
        assert "\n" not in str(error.value) and len(str(error.value)) < 800


# Rows, models and runs


@pytest.mark.parametrize("reference_states", ["swap", "stored"])
def test_rows_of_all_kinds_start_at_the_reference(
    reference_states, make_trainer, small_mask, retain_rows, forget_rows
):
    """One forget row, fewer retain rows than a batch, cut answers, workers, more steps than epochs, a seed of the data."""
    trainer = make_trainer(
        "undial",
        retain_loss="kl",
        reference_states=reference_states,
        mask_config=small_mask,
        train_dataset=forget_rows.select([0]),
        retain_dataset=retain_rows.select(range(3)),
        max_length=40,
        per_device_train_batch_size=4,
        dataloader_num_workers=2,
        data_seed=7,
    )
    trainer.train()
    assert trainer.state.global_step == 3
    assert abs(retain_losses(trainer)[0]) < 1e-6 < retain_losses(trainer)[-1]


def test_a_mixture_of_experts_with_its_router_loss_starts_at_the_reference(make_trainer, small_mask, tiny_tokenizer):
    config = MixtralConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        output_router_logits=True,
        pad_token_id=tiny_tokenizer.pad_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
        bos_token_id=None,
    )
    options = dict(retain_loss="kl", reference_states="swap", mask_config=small_mask)
    trainer = make_trainer("undial", MixtralForCausalLM(config), **options)
    trainer.train()
    assert abs(retain_losses(trainer)[0]) < 1e-6 < retain_losses(trainer)[-1]


def test_what_follows_a_run_knows_the_kl_term(make_trainer, small_mask, tiny_model, snapshot, tmp_path):
    """The trajectory, the end of a run that is done, the best model, and the delta, which brings the base to it."""
    from wagle_trl.deltas.delta import SparseDelta

    trainer = make_trainer(
        "npo",
        retain_loss="kl",
        reference_states="swap",
        mask_config=small_mask,
        max_steps=4,
        trajectory_steps=1,
        stop_forget_probability=0.5,
        save_delta=True,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="kept",
    )
    trainer.train()
    trainer.save_model()
    assert {"forget_probability", "retain_probability"} <= set(trainer.state.log_history[0])
    patched = tiny_model()
    SparseDelta.load(tmp_path / "out").apply(patched)
    weights = snapshot(patched)
    assert all(torch.equal(value, weights[name]) for name, value in snapshot(trainer.model).items())
