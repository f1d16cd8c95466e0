"""The files in a model's folder: which ones load it, and which of them are its own."""

from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What loads a model, under the names that transformers, tokenizers and PEFT give it. Any other file may be one of the
# user's own, such as the rows to forget, or something that executes.
_BESIDE_WEIGHTS = (
    *("config.json", "generation_config.json", "processor_config.json", "*preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer*.model", "special_tokens_map.json", "added_tokens.json"),
    *(
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "sentencepiece*.model",
        "tekken.json",
        "tiktoken.model",
    ),
    *("chat_template.json", "chat_template.jinja"),
)
MODEL_FILES = (
    *_BESIDE_WEIGHTS,
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *(ADAPTER_CONFIG, ADAPTER_WEIGHTS),
)
# Weights in any form: what is left of others would be loaded instead of new ones, or keep what was forgotten
WEIGHTS = (
    "*.safetensors",
    "*.bin",
    "*.gguf",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.index.json",
)


def is_like(name: str, patterns: Collection[str]) -> bool:
    """Whether a file is called like one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def files_beside_weights(folder: Path) -> list[Path]:
    """Config, tokenizer and what else loads a model with its weights; a `ValueError` if one is a link elsewhere."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and is_like(path.name, _BESIDE_WEIGHTS)]
    for path in paths:
        check_at_home(path)
    return paths


def check_at_home(path: Path) -> None:
    """
    A `ValueError` if a file is a link out of its folder, to what its owner may not want to be read.

    The files of a folder in the cache of the Hub are links to the blobs of that cache, which is fine.
    """
    file, folder = path.resolve(), path.parent.resolve()
    caches = [parent for parent in folder.parents if parent.name == "snapshots"]
    homes = [folder, *(home.with_name("blobs") for cache in caches for home in (cache, cache.parent))]
    if not any(map(file.is_relative_to, homes)):
        raise ValueError(f"{path} links to a file elsewhere, {file}; put the file in its place.")


def names_without(folder: Path, taken: Collection[str]) -> list[str]:
    """Names of all that is in a folder but for `taken`; those of folders end in a slash."""
    return [path.name + "/" * path.is_dir() for path in sorted(folder.iterdir()) if path.name not in taken]
