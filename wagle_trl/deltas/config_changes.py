"""What makes a model besides its weights: do two folders hold one config, and which other files differ?"""

import copy
import filecmp
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers  # `CONFIG_MAPPING` takes seconds to import, and is not needed where two configs are alike
from huggingface_hub.constants import CONFIG_NAME

from ..files.reading import read_json
from ..files.schemas import Config

_ABSENT = object()
_MAX_SHOWN = 80
_PLAIN_NUMBER = 2**24
# Saving, loading and TRL's trainers set these; none changes what the weights compute, but see `_COUNT_FROM_PADDING`
_FREE_KEYS = {
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
# Of these, positions start behind the number of the padding token; of others it changes nothing that is not masked
_COUNT_FROM_PADDING = {
    *(
        "camembert",
        "data2vec-text",
        "roberta",
        "roberta-prelayernorm",
        "trocr",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    ),
}
_OTHER_SUFFIXES = {".jinja", ".json", ".model", ".py", ".txt"}
_OF_TRAINING = ("wagle_", "trainer_state", ".")
_GENERATION = "generation_config.json"
_OF_VERSIONS = {"_from_model_config", "transformers_version"}


def config_changes(base: Path, unlearned: Path) -> dict[str, tuple[str, str]]:
    """
    Compare two configs by what they mean: a default that only one states is no difference.

    Args:
        base (`pathlib.Path`): Folder of the model before.
        unlearned (`pathlib.Path`): Folder of the model after.

    Returns:
        `dict[str, tuple[str, str]]`: By key, with dots where configs nest, the values before and after as JSON, shortened,
        or `"absent"`.
    """
    before, after = _read(base / CONFIG_NAME), _read(unlearned / CONFIG_NAME)
    changes = dict(_differences(before, after))
    if changes and (full := _with_defaults(before, after)):
        # transformers takes these out of a config: code that it may fetch from the Hub to compute with
        kernels = {key: change for key, change in changes.items() if key.endswith("_implementation")}
        changes = dict(_differences(*full)) | kernels
    if str(after.get("model_type")) in _COUNT_FROM_PADDING and before.get("pad_token_id") != after.get("pad_token_id"):
        changes["pad_token_id"] = before.get("pad_token_id", _ABSENT), after.get("pad_token_id", _ABSENT)
    if "auto_map" in after and (code := [name for name in other_files(base, unlearned) if name.endswith(".py")]):
        changes["auto_map"] = "code of the base", code
    return {_shown(key): (_shown_value(old), _shown_value(new)) for key, (old, new) in changes.items()}


def other_files(base: Path, unlearned: Path) -> list[str]:
    """
    Files of a tokenizer, of generation, templates and code that differ, or that one folder lacks.

    Args:
        base (`pathlib.Path`): Folder of the model before.
        unlearned (`pathlib.Path`): Folder of the model after.

    Returns:
        `list[str]`: Their names.
    """
    names = {path.name for folder in (base, unlearned) for path in folder.iterdir() if _is_other(path)}
    return [_shown(name) for name in sorted(names) if not _is_same(base / name, unlearned / name)]


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, Config) if path.is_file() else {}


def _differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys((*before, *after)):
            if name not in _FREE_KEYS:
                place = f"{key}.{name}" if key else str(name)
                yield from _differences(before.get(name, _ABSENT), after.get(name, _ABSENT), place)
    elif before != after and _as_json(before) != _as_json(after):  # NaN differs from itself
        yield key, (before, after)


def _with_defaults(before: dict[str, Any], after: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Both as this version of transformers understands them, or `None` where it knows no such model."""
    kind = before.get("model_type")
    # Some configs make a list of as many elements as they have layers: a stranger's number must not fill the memory
    if kind is None or kind != after.get("model_type") or set(_large_numbers(after)) - set(_large_numbers(before)):
        return None
    try:
        config_class = transformers.CONFIG_MAPPING[kind]
        old, new = (config_class.from_dict(copy.deepcopy(config)).to_dict() for config in (before, after))
        return old, new
    except Exception:  # whatever a config class raises for keys that it does not expect
        return None


def _large_numbers(config: Any) -> Iterator[int]:
    if isinstance(config, dict | list):
        for value in config.values() if isinstance(config, dict) else config:
            yield from _large_numbers(value)
    elif isinstance(config, int) and config > _PLAIN_NUMBER:
        yield config


def _shown_value(value: Any) -> str:
    return "absent" if value is _ABSENT else _shortened(_as_json(value))


def _shown(name: str) -> str:
    return _shortened(_as_json(name)[1:-1])


def _as_json(value: Any) -> str:
    """In ASCII, which a terminal shows and does not obey."""
    return json.dumps(value, default=str)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _is_other(path: Path) -> bool:
    is_weights = path.name.endswith(".index.json")
    is_known = path.name == CONFIG_NAME or path.name.startswith(_OF_TRAINING)
    return path.suffix in _OTHER_SUFFIXES and path.is_file() and not is_weights and not is_known


def _is_same(path: Path, other: Path) -> bool:
    if not (path.is_file() and other.is_file()):
        return False
    if filecmp.cmp(path, other, shallow=False):
        return True
    return path.name == _GENERATION and _settings(path) == _settings(other) is not None


def _settings(path: Path) -> dict[str, Any] | None:
    """What a generation config says, whatever version wrote it; `None` if it is not readable."""
    try:
        return {key: value for key, value in _read(path).items() if key not in _OF_VERSIONS}
    except ValueError:
        return None
