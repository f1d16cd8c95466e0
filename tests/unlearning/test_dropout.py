import math

import pytest
from peft import LoraConfig

from ..support.architectures import build

KINDS = ["falcon", "gpt2", "opt"]  # probabilities in the config, in modules, in attributes


@pytest.mark.parametrize("kind", KINDS)
def test_npo_starts_from_the_reference(kind, make_trainer):
    trainer = make_trainer("npo", build(kind, 0.1), max_steps=1)
    dropout = {name: value for name, value in vars(trainer.model.config).items() if "drop" in name}
    assert any(dropout.values())
    trainer.train()
    assert trainer.state.log_history[0]["forget_loss"] == pytest.approx(2 * math.log(2) / 0.1, abs=1e-3)
    assert {name: value for name, value in vars(trainer.model.config).items() if "drop" in name} == dropout


def test_dropout_of_adapters_is_off_too(make_trainer):
    adapters = LoraConfig(target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False)
    trainer = make_trainer("npo", peft_config=adapters, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["forget_loss"] == pytest.approx(2 * math.log(2) / 0.1, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_it_can_be_kept(kind, make_trainer):
    trainer = make_trainer("npo", build(kind, 0.1), max_steps=1, disable_dropout=False)
    trainer.train()
    assert abs(trainer.state.log_history[0]["forget_loss"] - 2 * math.log(2) / 0.1) > 1e-3
