import pytest
import torch


@pytest.mark.parametrize("retain_weight", [1.0, 0.25])
def test_loss_is_retain_minus_forget_cross_entropy(retain_weight, make_trainer, tiny_model, batches_of, log_probs_of):
    trainer = make_trainer("grad_diff", retain_weight=retain_weight, max_steps=1)
    forget, retain = batches_of(trainer)[0]
    base = tiny_model()
    trainer.train()
    log = trainer.state.log_history[0]
    with torch.no_grad():
        forget_ce, retain_ce = (
            -torch.cat([log_probs_of(base, row) for row in rows]).mean().item() for rows in (forget, retain)
        )
    assert log["forget_loss"] == pytest.approx(-forget_ce, rel=1e-5)
    assert log["retain_loss"] == pytest.approx(retain_ce, rel=1e-5)
    assert log["loss"] == pytest.approx(retain_weight * retain_ce - forget_ce, abs=1e-4)


def test_a_step_is_one_of_adamw_on_the_gradient_computed_by_hand(make_trainer, tiny_model, batches_of, log_probs_of):
    options = {"learning_rate": 1e-3, "adam_epsilon": 1e-3, "weight_decay": 0.0, "warmup_steps": 0}
    trainer = make_trainer("grad_diff", max_steps=1, retain_weight=1.0, **options)
    forget, retain = batches_of(trainer)[0]
    trainer.train()
    base = tiny_model()
    forget_loss, retain_loss = (
        -torch.cat([log_probs_of(base, row) for row in rows]).mean() for rows in (forget, retain)
    )
    (retain_loss - forget_loss).backward()
    torch.nn.utils.clip_grad_norm_(base.parameters(), 1.0)
    torch.optim.AdamW(base.parameters(), lr=1e-3, eps=1e-3, weight_decay=0.0).step()
    expected = dict(base.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        assert torch.allclose(parameter, expected[name], atol=1e-5, rtol=0), name


def test_training_raises_the_forget_loss_and_lowers_the_retain_loss(make_trainer, small_mask):
    trainer = make_trainer(
        "grad_diff",
        mask_config=small_mask,
        max_steps=12,
        learning_rate=5e-3,
        retain_weight=1.0,
        per_device_train_batch_size=6,
    )
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert -last["forget_loss"] > -first["forget_loss"] + 0.5
    assert last["retain_loss"] < first["retain_loss"]
