"""Which class of transformers makes a model, in every command: the one that its config names, as in TRL."""

from typing import Any

import transformers  # its names are used as attributes: each takes seconds to import

# What decides which files are read, for the config as for the model
_PLACE = ("revision", "token", "cache_dir", "force_download", "local_files_only", "trust_remote_code")


def class_of(config: "transformers.PretrainedConfig") -> Any:
    """
    The auto class whose `from_pretrained` and `from_config` make the model of `config`: `AutoModelForImageTextToText` where
    `architectures` names a multimodal model, which answers text as well, else `AutoModelForCausalLM`.
    """
    multimodal = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
    check_causal_lm(config)
    if (config.architectures or [None])[0] in multimodal:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def check_causal_lm(config: "transformers.PretrainedConfig") -> None:
    """Refuse the config of a model that is no causal language model."""
    name = (config.architectures or [type(config).__name__])[0]
    if config.is_encoder_decoder and not name.endswith("ForCausalLM"):
        raise ValueError(f"This is no causal language model: it is an encoder-decoder ({name}).")


def load_model(name_or_path: str, **options: Any) -> "transformers.PreTrainedModel":
    """
    Load a model with the class that its config names.

    Args:
        name_or_path (`str`): Folder, or repository of the Hub.
        **options: As in [`~transformers.PreTrainedModel.from_pretrained`].
    """
    place = {name: options[name] for name in _PLACE if name in options}
    config = transformers.AutoConfig.from_pretrained(name_or_path, **place)
    return class_of(config).from_pretrained(name_or_path, **options)
