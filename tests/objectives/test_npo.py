import math

import pytest
import torch

from wagle_trl import MaskConfig, NPOConfig
from wagle_trl.unlearning.reference import REFERENCE_COLUMN, reference_log_probs


def by_hand(model, base, rows, log_probs_of, beta=0.1, reduce=torch.sum) -> float:
    """NPO loss from plain logits of the model and of the base."""
    with torch.no_grad():
        ratios = [reduce(log_probs_of(model, row)) - reduce(log_probs_of(base, row)) for row in rows]
    return sum(2 / beta * math.log1p(math.exp(beta * ratio)) for ratio in ratios) / len(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_the_first_logged_loss_is_that_at_the_reference(beta, dtype, make_trainer, tiny_model, small_mask):
    trainer = make_trainer(model=tiny_model(dtype=dtype), mask_config=small_mask, max_steps=1, beta=beta)
    trainer.train()
    # In bf16 a row rounds differently beside rows of other lengths
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert trainer.state.log_history[0]["forget_loss"] == pytest.approx(2 * math.log(2) / beta, abs=tolerance)


def test_later_losses_equal_those_of_the_moved_model_against_the_original_one(
    make_trainer, tiny_model, batches_of, log_probs_of
):
    """Sums over the answer tokens: with their means the value is far off, as it is with another reference."""
    options = dict(learning_rate=1e-2, max_grad_norm=0.0)
    first = make_trainer(max_steps=1, **options)
    first.train()
    trainer = make_trainer(max_steps=2, **options)
    forget, _ = batches_of(trainer)[1]
    assert len({len(row["input_ids"]) for row in forget}) == 2
    trainer.train()
    logged = trainer.state.log_history[1]["forget_loss"]
    assert logged == pytest.approx(by_hand(first.model, tiny_model(), forget, log_probs_of), rel=1e-4)
    assert abs(logged - by_hand(first.model, tiny_model(), forget, log_probs_of, reduce=torch.mean)) > 0.5
    assert abs(logged - 2 * math.log(2) / 0.1) > 0.5


def test_the_reference_stays_the_original_model(make_trainer, tiny_model, log_probs_of, snapshot):
    trainer = make_trainer(learning_rate=1e-2, retain_weight=1.0)
    trainer.train()
    base = tiny_model()
    original = [log_probs_of(base, row).detach() for row in trainer.train_dataset]
    moved = [log_probs_of(trainer.model, row).detach() for row in trainer.train_dataset]
    assert all(now.sum() < then.sum() - 1 for now, then in zip(moved, original))
    for _ in range(2):
        for kept, row in zip(trainer.train_dataset[REFERENCE_COLUMN], original, strict=True):
            assert kept == pytest.approx(row.tolist(), abs=1e-4)  # of each answer token
        trainer.train()  # a second call goes on from the moved weights, still against the original ones


def test_reference_log_probs_do_not_depend_on_the_batch_size(make_trainer):
    trainers = [make_trainer(per_device_train_batch_size=size) for size in (1, 6)]
    one, many = (reference_log_probs(trainer, trainer.train_dataset) for trainer in trainers)
    assert len({len(row) for row in one}) > 1
    for row, other in zip(one, many, strict=True):
        assert row == pytest.approx(other, abs=1e-4)


def test_for_small_beta_a_step_goes_the_way_of_gradient_ascent(
    make_trainer, tiny_model, snapshot, batches_of, log_probs_of
):
    """The gradient of the training loss itself, at a model that has moved away from the reference."""
    trainer = make_trainer(beta=1e-4, retain_weight=0.0, learning_rate=1e-2, max_grad_norm=0.0)
    trainer.train()
    model = trainer.model
    model.zero_grad()
    forget, _ = batches_of(trainer)[0]
    batch = next(iter(trainer.get_train_dataloader()))
    model.train()
    trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor([2, 2, 9, 9])).backward()
    ours = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    (sum(log_probs_of(model, row).sum() for row in forget) / 2).backward()
    ascent = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.cosine_similarity(ours, ascent, dim=0) > 0.99999


def test_unlearning_lowers_the_forget_probability_and_keeps_the_retain_one(
    learned, make_trainer, retain_rows, log_probs_of, tiny_model
):
    """A model that knows all ten rows unlearns four of them."""
    trainer = make_trainer(
        model=learned,
        train_dataset=retain_rows.select(range(4)),
        retain_dataset=retain_rows.select(range(4, 10)),
        mask_config=MaskConfig(mask_density=0.3),
        max_steps=30,
        learning_rate=5e-3,
        retain_weight=5.0,
        per_device_train_batch_size=4,
    )

    def probability(rows):
        return sum(log_probs_of(trainer.model, row).mean().exp().item() for row in rows) / len(rows)

    forget, retain = probability(trainer.train_dataset), probability(trainer.retain_dataset)
    trainer.train()
    assert probability(trainer.train_dataset) < 0.05 * forget
    assert probability(trainer.retain_dataset) > 0.9 * retain


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("beta", 0.0, "beta must be positive and finite, got 0.0"),
        ("beta", -1.0, "beta must be positive and finite, got -1.0"),
        ("retain_weight", -0.5, "retain_weight must not be negative or infinite, got -0.5"),
    ],
)
def test_options_out_of_range_are_refused(option, value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        NPOConfig(output_dir=str(tmp_path), bf16=False, **{option: value})
