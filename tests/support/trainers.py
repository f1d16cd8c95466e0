"""A trainer in one call, and what is compared before and after: fixtures for all tests, see tests/conftest.py."""

import pytest
import torch

import wagle_trl  # loads a trainer only when a test asks for it

TRAINERS = {"npo": "NPOTrainer", "grad_diff": "GradDiffTrainer", "masked_sft": "MaskedSFTTrainer"}
OBJECTIVES = [kind for kind in TRAINERS if kind != "masked_sft"]


def trainer_class(kind: str):
    """The trainer of a kind above, or of a name of an objective on the command line."""
    if kind in TRAINERS:
        return getattr(wagle_trl, TRAINERS[kind])
    from wagle_trl.objectives.names import OBJECTIVES as named

    return named[kind]


@pytest.fixture
def small_mask():
    """Half of the weights of blocks and norms, at random: no gradients needed."""
    return wagle_trl.MaskConfig(mask_score="random", mask_density=0.5)


@pytest.fixture
def make_config(tmp_path):
    """Factory `make_config(kind, **options)` of a config for a CPU run of three steps that saves and reports nothing."""

    def build(kind: str, **options):
        defaults = dict(
            output_dir=str(tmp_path / "out"),
            learning_rate=1e-3,
            max_steps=3,
            per_device_train_batch_size=2,
            weight_decay=0.1,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            gradient_checkpointing=False,
            lr_scheduler_type="constant",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        if kind != "masked_sft":
            defaults["trajectory_steps"] = 0
        return trainer_class(kind).config_class(**defaults | options)

    return build


@pytest.fixture
def make_trainer(make_config, tiny_model, tiny_tokenizer, forget_rows, retain_rows):
    """Factory `make_trainer(kind="npo", model=None, <arguments of the trainer>, **options)` of a ready trainer."""

    def build(kind: str = "npo", model=None, **options):
        names = (
            "args",
            "mask_config",
            "mask",
            "train_dataset",
            "retain_dataset",
            "forget_dataset",
            "eval_dataset",
            "formatting_func",
            "processing_class",
            "peft_config",
            "optimizers",
            "callbacks",
        )
        arguments = {name: options.pop(name) for name in names if name in options}
        defaults = dict(train_dataset=forget_rows, retain_dataset=retain_rows, processing_class=tiny_tokenizer)
        if "args" not in arguments:
            arguments["args"] = make_config(kind, **options)
        return trainer_class(kind)(tiny_model() if model is None else model, **defaults | arguments)

    return build


def weights(model) -> dict[str, torch.Tensor]:
    """Copies of all parameters, shared ones once."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """Bit patterns, so that -0.0 differs from 0.0 and NaN equals itself."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


@pytest.fixture
def snapshot():
    return weights


@pytest.fixture
def assert_only_selected_moved():
    """`check(before, model, mask)`: unselected weights bit-identical, selected ones moved; returns the moved share."""

    def check(before: dict[str, torch.Tensor], model, mask) -> float:
        moved = selected = 0
        for name, parameter in model.named_parameters():
            changed = bits_of(parameter.detach()) != bits_of(before[name])
            chosen = mask.dense(name) if name in mask.bits else torch.zeros_like(changed)
            assert not (changed & ~chosen).any(), f"an unselected weight of '{name}' changed"
            moved += int((changed & chosen).sum())
            selected += int(chosen.sum())
        assert selected == mask.num_selected
        return moved / selected

    return check


def answer_log_probs(model, row) -> torch.Tensor:
    """Log-probabilities of a prepared row's answer tokens, from plain logits, without padding."""
    ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])[1:]
    log_probs = model(ids[None]).logits[0, :-1].float().log_softmax(-1)
    answer = labels != -100
    return log_probs[answer].gather(1, labels[answer, None])[:, 0]


@pytest.fixture
def log_probs_of():
    return answer_log_probs


@pytest.fixture
def batches_of():
    """`batches_of(trainer)`: the (forget rows, retain rows) of every batch of the first epoch, one process."""

    def split(trainer) -> list[tuple[list, list]]:
        pairs = list(trainer._pair_sampler)
        size = trainer.args.per_device_train_batch_size
        return [
            (
                [trainer.train_dataset[i] for i, _, _ in pairs[start : start + size]],
                [trainer.retain_dataset[j] for _, j, _ in pairs[start : start + size]],
            )
            for start in range(0, len(pairs), size)
        ]

    return split


@pytest.fixture
def learned(make_trainer, retain_rows, tiny_model):
    """A model that knows the retain rows by heart and nothing of the forget rows."""
    trainer = make_trainer(
        "masked_sft", train_dataset=retain_rows, max_steps=40, learning_rate=5e-3, per_device_train_batch_size=10
    )
    trainer.train()
    model = tiny_model()  # not a copy of the trainer's: TRL patches its forward
    model.load_state_dict(trainer.model.state_dict())
    return model
