"""No dropout in unlearning: an objective compares with what the model said before, which was said without."""

import copy

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from trl.trainer.utils import disable_dropout_in_model


def disable_dropout(model: nn.Module) -> None:
    """
    Switch off every kind of dropout: modules, probabilities that modules hold, and those that layers read in the config.
    The model's own config, which is saved with it, stays.

    Args:
        model (`torch.nn.Module`): Model, changed in place.
    """
    disable_dropout_in_model(model)
    configs: dict[int, PretrainedConfig] = {}
    for module in model.modules():
        _zero_dropout(module)
        config = vars(module).get("config")
        if isinstance(config, PretrainedConfig) and not isinstance(module, PreTrainedModel):
            vars(module)["config"] = configs.setdefault(id(config), copy.copy(config))  # one for all layers
    for config in configs.values():
        _zero_dropout(config)


def _zero_dropout(holder: nn.Module | PretrainedConfig) -> None:
    for name, value in vars(holder).items():
        if isinstance(value, float) and "drop" in name:  # `attention_dropout`, `resid_pdrop`, `layerdrop`
            setattr(holder, name, 0.0)
