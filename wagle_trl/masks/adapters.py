"""The options of adapters, for reports and cache keys: two models with equal adapter weights may differ in them."""

import json
from dataclasses import MISSING, fields
from typing import Any

from peft import PeftConfig, PeftModel


def adapter_settings(model: PeftModel) -> dict[str, Any]:
    """
    Collect the options of a model's adapters that are not PEFT's defaults, as JSON would read them back.

    Args:
        model ([`~peft.PeftModel`]): Model with adapters.

    Returns:
        `dict`: Values by the names of the options after `peft_`, such as `peft_r` and `peft_lora_alpha`.
    """
    config = model.active_peft_config
    origin = {field.name for field in fields(PeftConfig)}  # the kind, and where the adapters are from
    given = {}
    for field in fields(config):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(config, field.name)
        if field.name not in origin and value != default:
            given[f"peft_{field.name}"] = value
    return json.loads(json.dumps(given, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))
