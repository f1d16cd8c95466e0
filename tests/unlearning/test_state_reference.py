"""The reference as hidden states is the model before unlearning, bit for bit, and asking for it changes no training."""

import pytest
import torch
from transformers import TrainerCallback

from wagle_trl import MaskConfig
from wagle_trl.files.run_folder import STATES_FILE
from wagle_trl.losses.lm_head import SplitModel
from wagle_trl.unlearning.state_reference import STATES, StateReference

from ..support.trainers import bits_of

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def states_and_logits(model, rows):
    """Last hidden states and logits of two rows, in eval mode and by no forward that TRL has patched."""
    ids = torch.tensor([row["input_ids"][:12] for row in rows.select(range(2))])
    training = model.training
    with torch.no_grad():
        outputs = type(model).forward(model.eval(), input_ids=ids, output_hidden_states=True)
    model.train(training)
    return outputs.hidden_states[-1], outputs.logits


def state_of(trainer):
    """Copies of the weights, and of all that the optimizer keeps."""
    kept = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    for number, values in trainer.optimizer.state_dict()["state"].items():
        kept |= {f"{number}.{kind}": value.clone() for kind, value in values.items()}
    return kept


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []


class Exchanges:
    """Counts the exchanges of a trainer's optimizer."""

    def __init__(self, trainer, monkeypatch):
        self.count = 0
        create = trainer.create_optimizer

        def counted():
            optimizer = create()
            exchange = optimizer.exchange

            def exchange_and_count(values):
                self.count += 1
                exchange(values)

            monkeypatch.setattr(optimizer, "exchange", exchange_and_count)
            return optimizer

        monkeypatch.setattr(trainer, "create_optimizer", counted)


# Swapped


@pytest.mark.parametrize(
    "dtype, density, optim",
    [
        (torch.float32, 0.05, "adamw_torch"),
        (torch.float32, 0.5, "adamw_8bit"),
        (torch.bfloat16, 0.05, "adamw_8bit"),
        (torch.bfloat16, 0.5, "adamw_torch"),
    ],
)
def test_swapped_weights_are_the_base_bit_for_bit_and_the_policy_comes_back(
    dtype, density, optim, make_trainer, tiny_model
):
    size = dict(hidden_size=64, dtype=dtype)  # matrices of 4,096 weights have 8-bit moments
    config = MaskConfig(mask_score="random", mask_density=density)
    kl = dict(retain_loss="kl", reference_states="swap", mask_config=config)
    trainer = make_trainer("npo", tiny_model(**size), **kl, max_steps=5, optim=optim)
    trainer.train()
    base, before = tiny_model(**size), state_of(trainer)
    wanted, trained = (states_and_logits(model, trainer.train_dataset) for model in (base, trainer.model))
    assert not torch.equal(wanted[1], trained[1])
    with trainer.state_reference._before_unlearning():
        found = states_and_logits(trainer.model, trainer.train_dataset)
        weights = dict(trainer.model.named_parameters())
        assert all(torch.equal(bits_of(weights[name]), bits_of(p)) for name, p in base.named_parameters())
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    assert_same(state_of(trainer), before)


@pytest.mark.parametrize("dtype, optim", [(torch.float32, "adamw_torch"), (torch.bfloat16, "adamw_8bit")])
def test_swaps_change_no_bit_of_training(dtype, optim, make_trainer, small_mask, tiny_model):
    def trained(swaps):
        model = tiny_model(dtype=dtype, hidden_size=64)
        trainer = make_trainer("graddiff", model, mask_config=small_mask, reference_states="swap", optim=optim)

        class Swap(TrainerCallback):
            def on_train_begin(self, *args, **kwargs):
                self.reference = StateReference(trainer, SplitModel.of(trainer.model), ["retain"])
                self.reference.prepare(None)

            def on_step_begin(self, *args, **kwargs):
                with self.reference._before_unlearning():
                    states_and_logits(trainer.model, trainer.train_dataset)

        if swaps:
            trainer.add_callback(Swap())
        trainer.train()
        return state_of(trainer)

    assert_same(trained(swaps=True), trained(swaps=False))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_while_the_base_is_in_the_model_leaves_the_policy(
    error, make_trainer, small_mask, tiny_model, monkeypatch
):
    trainer = make_trainer("npo", retain_loss="kl", reference_states="swap", mask_config=small_mask, max_steps=4)
    forward, seen = StateReference._forward, []

    def fail_at_the_third(self, batch):
        seen.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
        if len(seen) == 3:
            raise error("stop")
        return forward(self, batch)

    class Policy(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            self.weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}

    policy = Policy()
    trainer.add_callback(policy)
    monkeypatch.setattr(StateReference, "_forward", fail_at_the_third)
    with pytest.raises(error, match="stop"):
        trainer.train()
    assert_same(seen[2], dict(tiny_model().named_parameters()))  # the base was in the model
    assert_same(dict(trainer.model.named_parameters()), policy.weights)


def test_checkpointed_layers_compute_the_policy_again(make_trainer, small_mask, snapshot):
    def trained(**options):
        trainer = make_trainer("undial", retain_loss="kl", reference_states="swap", mask_config=small_mask, **options)
        trainer.train()
        return snapshot(trainer.model)

    assert_same(trained(gradient_checkpointing=True), trained())


@pytest.mark.parametrize("batch, accumulation", [(4, 1), (1, 4)])
def test_weights_are_exchanged_twice_per_step_whatever_the_accumulation(
    batch, accumulation, make_trainer, small_mask, monkeypatch
):
    size = dict(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    trainer = make_trainer("undial", retain_loss="kl", reference_states="swap", mask_config=small_mask, **size)
    exchanges = Exchanges(trainer, monkeypatch)
    trainer.train()
    assert exchanges.count == 2 * 3


@pytest.mark.parametrize("reference_states", ["swap", "stored"])
@pytest.mark.parametrize("off", [True, False])
def test_the_reference_has_no_dropout_and_the_policy_what_its_option_says(
    off, reference_states, make_trainer, small_mask, tiny_model
):
    model = tiny_model(attention_dropout=0.9)
    options = dict(retain_loss="kl", reference_states=reference_states, mask_config=small_mask)
    trainer = make_trainer("graddiff", model, disable_dropout=off, forget_weight=0.0, **options)
    trainer.train()
    first = trainer.state.log_history[0]["retain_loss"]  # of the base: without dropout there is no divergence
    assert (abs(first) < 1e-6) == off


# Stored


def references_of(trainer):
    """States of the reference in the first batches of a run."""
    seen = []
    get_batch_samples = trainer.get_batch_samples

    def noted(*args):
        batches, counts = get_batch_samples(*args)
        seen.extend(batch[STATES].clone() for batch in batches)
        return batches, counts

    trainer.get_batch_samples = noted
    trainer.train()
    return seen


@DTYPES
def test_stored_states_are_the_swapped_ones_to_rounding(dtype, make_trainer, small_mask, tiny_model):
    def seen(way):
        options = dict(retain_loss="kl", reference_states=way, mask_config=small_mask, per_device_train_batch_size=4)
        return references_of(make_trainer("undial", tiny_model(dtype=dtype), **options, max_steps=4))

    stored, swapped = seen("stored"), seen("swap")
    assert len(stored) == 4
    for ours, theirs in zip(stored, swapped):
        assert ours.dtype == theirs.dtype == dtype
        assert (ours - theirs).abs().mean() < 4 * torch.finfo(dtype).eps * theirs.abs().mean()


def test_stored_states_are_read_again_for_the_same_base_and_rows_only(
    make_trainer, small_mask, tiny_model, retain_rows, tmp_path, snapshot
):
    path = tmp_path / "out" / STATES_FILE
    options = dict(retain_loss="kl", reference_states="stored", mask_config=small_mask, max_steps=4)
    whole = make_trainer("undial", **options, save_strategy="steps", save_steps=2)
    whole.train()
    first = path.stat().st_ino
    resumed = make_trainer("undial", **options, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert path.stat().st_ino == first
    assert_same(snapshot(resumed.model), snapshot(whole.model))

    content = path.read_bytes()
    make_trainer("undial", tiny_model(seed=1), **options).train()
    assert path.read_bytes() != content
    content = path.read_bytes()
    make_trainer("undial", tiny_model(seed=1), retain_dataset=retain_rows.select(range(9)), **options).train()
    assert path.read_bytes() != content
