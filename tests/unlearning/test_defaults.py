import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import SFTConfig

from wagle_trl import GradDiffConfig, NPOConfig
from wagle_trl.unlearning.defaults import default_learning_rate, default_num_train_epochs


@pytest.fixture
def quiet(tmp_path):
    return {"output_dir": str(tmp_path / "out"), "report_to": "none", "save_strategy": "no", "bf16": False}


def width_of(model):
    return model.config.hidden_size


def test_the_rate_falls_with_the_width_and_rises_with_the_sparsity_of_the_mask(tiny_model):
    model = tiny_model()
    dense = default_learning_rate(model)
    assert dense == pytest.approx(5e-5 * 256 / width_of(model), rel=0.05)
    assert default_learning_rate(model, 0.25) == pytest.approx(2 * dense, rel=0.05)
    assert default_learning_rate(model, 1.0) == dense


def test_the_rate_of_adapters_is_that_of_adapters(tiny_model):
    adapters = get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear"))
    assert default_learning_rate(adapters) == default_learning_rate(adapters, 0.05) == 2.5e-4


@pytest.mark.parametrize(
    ("rows", "options", "epochs"),
    [
        (40, {}, 40),  # 5 steps an epoch
        (41, {}, 34),  # 6 steps an epoch
        (400, {}, 5),  # 50 steps an epoch: 4 epochs would do
        (1, {}, 200),
        (400, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}, 16),
    ],
)
def test_a_run_is_two_hundred_steps_or_five_epochs_long(rows, options, epochs, quiet):
    assert default_num_train_epochs(rows, NPOConfig(**quiet | options)) == epochs


@pytest.mark.parametrize("kind", ["npo", "grad_diff"])
def test_a_trainer_chooses_what_is_not_given(kind, make_trainer, small_mask, tiny_model):
    trainer = make_trainer(kind, mask_config=small_mask, learning_rate=None, max_steps=-1)
    rate = default_learning_rate(tiny_model(), small_mask.mask_density)
    assert trainer.args.learning_rate == rate
    assert trainer.args.num_train_epochs == default_num_train_epochs(len(trainer.train_dataset), trainer.args)
    trainer = make_trainer(kind, learning_rate=3e-3, num_train_epochs=2)
    assert (trainer.args.learning_rate, trainer.args.num_train_epochs) == (3e-3, 2)


def test_the_pieces_of_long_rows_count_as_rows(make_trainer):
    rows = Dataset.from_list([{"text": "Ada lives in Oslo, and Bo in Lima. " * 20}])
    trainer = make_trainer(train_dataset=rows, long_rows="split", max_length=32, max_steps=-1)
    assert len(trainer.train_dataset) > 8
    assert trainer.args.num_train_epochs == default_num_train_epochs(len(trainer.train_dataset), trainer.args) < 50


def test_two_trainers_of_the_same_arguments_have_each_their_own_rate(make_trainer, small_mask, tiny_model, quiet):
    args = NPOConfig(**quiet)
    masked, dense = make_trainer(args=args, mask_config=small_mask), make_trainer(args=args)
    assert masked.args.learning_rate > dense.args.learning_rate
    assert args.learning_rate is None and args.num_train_epochs is None


def test_what_an_sft_config_leaves_at_its_defaults_takes_those_of_unlearning(make_trainer, quiet):
    trainer = make_trainer(args=SFTConfig(**quiet))
    own = NPOConfig(**quiet)
    for name in ("retain_weight", "warmup_steps", "lr_scheduler_type"):
        assert getattr(trainer.args, name) == getattr(own, name), name
    assert trainer.args.learning_rate != SFTConfig(**quiet).learning_rate
    given = make_trainer(args=SFTConfig(**quiet, warmup_steps=7, num_train_epochs=2.0)).args
    assert (given.warmup_steps, given.num_train_epochs) == (7, 2.0)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(value, quiet):
    with pytest.raises(ValueError, match="learning_rate must be positive and finite, got"):
        GradDiffConfig(**quiet, learning_rate=value)
