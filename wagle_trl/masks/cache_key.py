"""What a kept result depends on, as one digest: results under another key are of something else."""

import hashlib
import json
from importlib.metadata import version
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .fingerprint import fingerprint_of

VERSIONS = ("wagle-trl", "torch", "transformers")
_ORIGIN = ("_name_or_path", "transformers_version")  # of a config: where it was read, and by whom it was written


def cache_key(model: nn.Module, **content: Any) -> str:
    """
    Digest of every weight and buffer of a model in its own dtype, its configs, how and where it computes, the versions of
    the libraries, and whatever else a result depends on.

    Args:
        model (`torch.nn.Module`): The model.
        **content: What else, such as options and rows.

    Returns:
        `str`: Hexadecimal digits.
    """
    described = content | {
        "weights": fingerprint_of({**dict(model.named_parameters()), **dict(model.named_buffers())}),
        "devices": sorted({parameter.device.type for parameter in model.parameters()}),
        "versions": {name: version(name) for name in VERSIONS},
    }
    if isinstance(model, PreTrainedModel):
        config = model.config.to_dict()
        described["config"] = {name: value for name, value in config.items() if name not in _ORIGIN}
        described["attention"] = model.config._attn_implementation
        described["generation"] = model.generation_config.to_dict() if model.can_generate() else None
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()
