"""Where data and models come from: what a report says of them, so that others can find, or recognise, the same."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import constants, try_to_load_from_cache


def rows_digest(dataset: Dataset) -> str:
    """
    SHA-256 of what rows say, whatever their order.

    Every row is written as JSON, without columns that are null: `json.dumps(row, sort_keys=True, ensure_ascii=False,
    separators=(",", ":"))`, in UTF-8. The digest is that of the hexadecimal SHA-256 digests of all rows, sorted and
    joined by newlines. Trainers take it of the rows that they are given, before anything is tokenized; those of
    `wagle npo` went through [`~data.to_trl`].

    Args:
        dataset ([`~datasets.Dataset`]): The rows.

    Returns:
        `str`: 64 hexadecimal digits.
    """
    digests = sorted(hashlib.sha256(_as_json(row)).hexdigest() for row in dataset.with_format(None))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _as_json(row: dict[str, Any]) -> bytes:
    content = {name: value for name, value in row.items() if value is not None}
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str).encode()


def describe_rows(dataset: Dataset) -> dict[str, Any]:
    """
    Where rows come from, and their digest.

    Args:
        dataset ([`~datasets.Dataset`]): The rows, as they were loaded, or mapped or filtered since.

    Returns:
        `dict`: `source`, the repository on the Hub, else the name of the file or folder that [`~data.load_rows`] read;
        `revision`, the commit, and `config`, both of a repository on the Hub only; `split`; `rows`, their number; and
        `sha256`, see [`rows_digest`]. What is not known is `None`.
    """
    info = dataset.info
    repository, revision = _hub_origin(dataset)
    given = None if info.dataset_name == info.builder_name else info.dataset_name  # "json" is no name
    return {
        "source": repository or given,
        "revision": revision,
        "config": info.config_name if repository else None,
        "split": None if dataset.split is None else str(dataset.split),
        "rows": len(dataset),
        "sha256": rows_digest(dataset),
    }


def _hub_origin(dataset: Dataset) -> tuple[str, str] | tuple[None, None]:
    """
    Repository and commit. `datasets` keeps the commit as the name of the folder of its cache, and the name of the
    repository in lower case; the cache of the Hub has it as it is.
    """
    folders = {Path(file["filename"]).parent.name for file in dataset.cache_files}
    commit = folders.pop() if len(folders) == 1 else ""
    if dataset.info.dataset_name is None or not re.fullmatch("[0-9a-f]{40}", commit):  # no name: of several sources
        return None, None
    for snapshot in Path(constants.HF_HUB_CACHE).glob(f"datasets--*/snapshots/{commit}"):
        return snapshot.parts[-3].removeprefix("datasets--").replace(constants.REPO_ID_SEPARATOR, "/"), commit
    return None, None


def model_commit(name: str, revision: str | None = None) -> str | None:
    """
    The commit that a model was loaded at, as the cache of the Hub has it.

    Args:
        name (`str`): What `from_pretrained` was given.
        revision (`str`, *optional*): Branch, tag or commit it was given.

    Returns:
        `str`: The commit; `None` of a model in a folder, or one that is not in the cache.
    """
    if os.path.isdir(name):
        return None
    path = try_to_load_from_cache(name, constants.CONFIG_NAME, revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None
