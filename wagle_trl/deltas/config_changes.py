"""Compare what makes a model besides its weights: the configs of two folders, and their other files."""

import copy
import filecmp
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers  # `CONFIG_MAPPING` takes seconds to import, and is not needed if two configs are equal
from huggingface_hub.constants import CONFIG_NAME

from ..files.reading import read_json
from ..files.schemas import Config

_ABSENT = object()
_MAX_SHOWN = 80
_LARGE_NUMBER = 2**24
# Set by saving, by loading and by TRL's trainers. They do not change what the weights compute, except for the models of
# `_PADDING_OFFSET_MODELS`
_IGNORED_KEYS = {
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "gradient_checkpointing",
    "output_router_logits",
    "pad_token_id",
    "router_aux_loss_coef",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
# Models that count positions from the id of the padding token. In other models this id changes only what is masked
_PADDING_OFFSET_MODELS = {
    "camembert",
    "data2vec-text",
    "roberta",
    "roberta-prelayernorm",
    "trocr",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
_OTHER_SUFFIXES = {".jinja", ".json", ".model", ".py", ".txt"}
_TRAINING_PREFIXES = ("wagle_", "trainer_state", ".")
_GENERATION_FILE = "generation_config.json"
_VERSION_KEYS = {"_from_model_config", "transformers_version"}


def config_changes(base: Path, unlearned: Path) -> dict[str, tuple[str, str]]:
    """
    Compare two configs by their meaning: a default value that only one of them states is no difference.

    Args:
        base (`pathlib.Path`): Folder of the model before unlearning.
        unlearned (`pathlib.Path`): Folder of the model after unlearning.

    Returns:
        `dict[str, tuple[str, str]]`: Values before and after, as shortened JSON or `"absent"`, by key. Keys of nested
        configs are joined by dots.
    """
    before, after = _read(base / CONFIG_NAME), _read(unlearned / CONFIG_NAME)
    changes = dict(_differences(before, after))
    if changes and (full := _with_defaults(before, after)):
        # These keys name code that transformers may fetch from the Hub. It drops them from a config that it loads
        kernels = {key: change for key, change in changes.items() if key.endswith("_implementation")}
        changes = dict(_differences(*full)) | kernels
    is_padding_changed = before.get("pad_token_id") != after.get("pad_token_id")
    if is_padding_changed and str(after.get("model_type")) in _PADDING_OFFSET_MODELS:
        changes["pad_token_id"] = before.get("pad_token_id", _ABSENT), after.get("pad_token_id", _ABSENT)
    if "auto_map" in after and (code := [name for name in other_files(base, unlearned) if name.endswith(".py")]):
        changes["auto_map"] = "code of the base", code
    return {_printable(key): (_printable_value(old), _printable_value(new)) for key, (old, new) in changes.items()}


def other_files(base: Path, unlearned: Path) -> list[str]:
    """
    Find tokenizer, generation, template and code files that differ, or that only one folder has.

    Args:
        base (`pathlib.Path`): Folder of the model before unlearning.
        unlearned (`pathlib.Path`): Folder of the model after unlearning.

    Returns:
        `list[str]`: Names of the files.
    """
    names = {path.name for folder in (base, unlearned) for path in folder.iterdir() if _is_other_file(path)}
    return [_printable(name) for name in sorted(names) if not _is_same(base / name, unlearned / name)]


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, Config) if path.is_file() else {}


def _differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys((*before, *after)):
            if name not in _IGNORED_KEYS:
                path = f"{key}.{name}" if key else str(name)
                yield from _differences(before.get(name, _ABSENT), after.get(name, _ABSENT), path)
    elif before != after and _as_json(before) != _as_json(after):  # NaN differs from itself
        yield key, (before, after)


def _with_defaults(before: dict[str, Any], after: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Both configs with the defaults of this version of transformers, or `None` if it does not know the model."""
    model_type = before.get("model_type")
    if model_type is None or model_type != after.get("model_type"):
        return None
    # Some configs build a list with one element per layer: a stranger's number must not fill the memory
    if set(_large_numbers(after)) - set(_large_numbers(before)):
        return None
    try:
        config_class = transformers.CONFIG_MAPPING[model_type]
        old, new = (config_class.from_dict(copy.deepcopy(config)).to_dict() for config in (before, after))
        return old, new
    except Exception:  # a config class may raise anything for keys that it does not expect
        return None


def _large_numbers(config: Any) -> Iterator[int]:
    if isinstance(config, dict | list):
        for value in config.values() if isinstance(config, dict) else config:
            yield from _large_numbers(value)
    elif isinstance(config, int) and config > _LARGE_NUMBER:
        yield config


def _printable_value(value: Any) -> str:
    return "absent" if value is _ABSENT else _shortened(_as_json(value))


def _printable(name: str) -> str:
    return _shortened(_as_json(name)[1:-1])


def _as_json(value: Any) -> str:
    """JSON in ASCII, which cannot hold commands to a terminal."""
    return json.dumps(value, default=str)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _is_other_file(path: Path) -> bool:
    is_weight_index = path.name.endswith(".index.json")
    is_known = path.name == CONFIG_NAME or path.name.startswith(_TRAINING_PREFIXES)
    return path.suffix in _OTHER_SUFFIXES and path.is_file() and not is_weight_index and not is_known


def _is_same(path: Path, other: Path) -> bool:
    if not (path.is_file() and other.is_file()):
        return False
    if filecmp.cmp(path, other, shallow=False):
        return True
    return path.name == _GENERATION_FILE and _generation_options(path) == _generation_options(other) is not None


def _generation_options(path: Path) -> dict[str, Any] | None:
    """Options in a generation config, without the version that wrote it; `None` if the file is not readable."""
    try:
        return {key: value for key, value in _read(path).items() if key not in _VERSION_KEYS}
    except ValueError:
        return None
