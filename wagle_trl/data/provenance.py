"""Where data and models come from: what a report says of them, so that others can find, or recognise, the same."""

import hashlib
import hmac
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import constants, try_to_load_from_cache

from ..files.atomic import sync, temporary_folder
from ..files.run_folder import KEY_FILE

_KEY_BYTES = 32


def rows_digest(dataset: Dataset, key: bytes | None = None) -> str:
    """
    Digest of what rows say, whatever their order.

    Every row is written as JSON, without columns that are null: `json.dumps(row, sort_keys=True, ensure_ascii=False,
    separators=(",", ":"))`, in UTF-8. The digest is that of the hexadecimal SHA-256 digests of all rows, sorted and
    joined by newlines. Trainers take it of the rows that they are given, before anything is converted or tokenized.

    Without a key, whoever sees the digest can try guesses at the rows until one fits. With a key, only who has that can.
    The number of rows is hidden by neither, nor that the rows are the same where two digests of one key are equal.

    Args:
        dataset ([`~datasets.Dataset`]): The rows.
        key (`bytes`, *optional*): For an HMAC-SHA-256 in place of the last SHA-256, see [`secret_key`].

    Returns:
        `str`: 64 hexadecimal digits.
    """
    digests = sorted(hashlib.sha256(_as_json(row)).hexdigest() for row in dataset.with_format(None))
    content = "\n".join(digests).encode()
    return hashlib.sha256(content).hexdigest() if key is None else hmac.digest(key, content, "sha256").hex()


def secret_key(folder: str | os.PathLike) -> bytes:
    """
    The key of an owner of rows, from `wagle_rows.key` in a folder. A random one is made if there is none, which only the
    owner of the file may read. To compare digests of runs, copy it into the folders of all.

    Args:
        folder (`str` or `os.PathLike`): Output folder of a run.
    """
    path = Path(folder, KEY_FILE)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_key(path)
    text = path.read_text(encoding="ascii", errors="replace").strip()
    if not re.fullmatch(f"[0-9a-f]{{{2 * _KEY_BYTES}}}", text):
        raise ValueError(
            f"{path} is no key of {2 * _KEY_BYTES} hexadecimal digits; put the right one there, or remove it for a new one, "
            "with which earlier digests cannot be compared."
        )
    return bytes.fromhex(text)


def _make_key(path: Path) -> None:
    """Not by `atomic_path`: the file is private, and of two processes that make one, the first wins and both use it."""
    with temporary_folder(path.parent) as folder:
        made = folder / path.name
        made.touch(mode=0o600)
        made.write_text(secrets.token_hex(_KEY_BYTES) + "\n", encoding="ascii")
        sync(made)
        try:
            os.link(made, path)
        except FileExistsError:
            pass
        except OSError:  # a disk without links
            os.replace(made, path)
        sync(path.parent)


def _as_json(row: Any) -> bytes:
    content = {name: value for name, value in row.items() if value is not None}
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str).encode()


def describe_rows(dataset: Dataset, folder: str | os.PathLike, *, hashed: bool = False) -> dict[str, Any]:
    """
    Where rows come from, and their digest: a plain one of rows that all can read, a keyed one of others.

    Args:
        dataset ([`~datasets.Dataset`]): The rows, as they were loaded, or mapped or filtered since.
        folder (`str` or `os.PathLike`): Where the [`secret_key`] is.
        hashed (`bool`, *optional*, defaults to `False`): Whether to tell no more than their number and a keyed digest.

    Returns:
        `dict`: `source`, the repository on the Hub, else the name of the file or folder that [`~data.rows.load_rows`] read;
        `revision`, the commit, and `config`, both of a repository on the Hub only; `split`; `rows`, their number; and
        `sha256` of rows of the Hub at a known commit, `hmac_sha256` of all others, see [`rows_digest`]. What is not known
        is `None`.
    """
    if hashed:
        return {"rows": len(dataset), "hmac_sha256": rows_digest(dataset, secret_key(folder))}
    info = dataset.info
    repository, revision = _hub_origin(dataset)
    given = None if info.dataset_name == info.builder_name else info.dataset_name  # "json" is no name
    return {
        "source": repository or given,
        "revision": revision,
        "config": info.config_name if repository else None,
        "split": None if dataset.split is None else str(dataset.split),
        "rows": len(dataset),
        **(
            {"sha256": rows_digest(dataset)} if revision else {"hmac_sha256": rows_digest(dataset, secret_key(folder))}
        ),
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
