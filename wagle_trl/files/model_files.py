"""Files in the folder of a model: which ones load it, and which belong to it."""

from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Files that load a model, by the names that transformers, tokenizers and PEFT give them. Any other file may be private,
# such as the rows to forget, or executable.
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
# Weights in any format: files left of another model would be loaded instead, or hold what was forgotten
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


def matches_any(name: str, patterns: Collection[str]) -> bool:
    """Whether the name of a file matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def files_beside_weights(folder: Path) -> list[Path]:
    """Find the config, tokenizer and other files that load a model; a `ValueError` if one links out of the folder."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and matches_any(path.name, _BESIDE_WEIGHTS)]
    for path in paths:
        check_inside_folder(path)
    return paths


def check_inside_folder(path: Path) -> None:
    """
    Raise a `ValueError` if a file is a link out of its folder, which could reveal a private file.

    Files in the cache of the Hub are links to the blobs of that cache, which are allowed.
    """
    file, folder = path.resolve(), path.parent.resolve()
    caches = [parent for parent in folder.parents if parent.name == "snapshots"]
    blobs = (place.with_name("blobs") for cache in caches for place in (cache, cache.parent))
    if not any(map(file.is_relative_to, (folder, *blobs))):
        raise ValueError(f"{path} links to a file elsewhere, {file}; replace the link by the file.")


def other_names(folder: Path, known: Collection[str]) -> list[str]:
    """List the names in a folder that are not in `known`; names of folders end in a slash."""
    return [path.name + "/" * path.is_dir() for path in sorted(folder.iterdir()) if path.name not in known]
