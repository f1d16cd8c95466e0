"""Hash of everything that a stored result depends on. Results with another key belong to another computation."""

import hashlib
import json
from importlib.metadata import version
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from .adapters import adapter_settings
from .fingerprint import fingerprint_of

VERSIONS = ("wagle-trl", "torch", "transformers")
_ORIGIN = ("_name_or_path", "transformers_version")  # entries of a config that only say where it comes from


def cache_key(model: nn.Module, **content: Any) -> str:
    """
    Hash every weight and buffer of a model in its own dtype, its configs, adapters, attention and devices, the versions of
    the libraries, and all else that a result depends on.

    Args:
        model (`torch.nn.Module`): Model that computes the result.
        **content: Everything else that the result depends on, such as options and rows.

    Returns:
        `str`: Hexadecimal digits.
    """
    described = content | {
        "weights": fingerprint_of({**dict(model.named_parameters()), **dict(model.named_buffers())}),
        "devices": sorted({parameter.device.type for parameter in model.parameters()}),
        "versions": {name: version(name) for name in VERSIONS},
    }
    if isinstance(model, PeftModel):
        described["adapters"] = adapter_settings(model)
        model = model.get_base_model()
    if isinstance(model, PreTrainedModel):
        config = model.config.to_dict()
        described["config"] = {name: value for name, value in config.items() if name not in _ORIGIN}
        described["attention"] = model.config._attn_implementation
        described["generation"] = model.generation_config.to_dict() if model.can_generate() else None
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()
