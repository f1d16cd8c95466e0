"""Provenance of data and models: what a report records of them, so that others can find or verify the same ones."""

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
    Compute a digest of the contents of rows, independent of their order.

    Every row is written as JSON, without columns that are null: `json.dumps(row, sort_keys=True, ensure_ascii=False,
    separators=(",", ":"))`, in UTF-8. The digest is that of the hexadecimal SHA-256 digests of all rows, sorted and
    joined by newlines. Trainers take it of the rows that they are given, before anything is converted or tokenized.

    Without a key, anyone who sees the digest can test guesses of the rows. With a key, only its owner can. Neither hides
    the number of rows, nor that rows are equal if two digests with one key are equal.

    Args:
        dataset ([`~datasets.Dataset`]): Rows.
        key (`bytes`, *optional*): Key of an HMAC-SHA-256 in place of the last SHA-256, see [`secret_key`].

    Returns:
        `str`: 64 hexadecimal digits.
    """
    digests = sorted(hashlib.sha256(_as_json(row)).hexdigest() for row in dataset.with_format(None))
    content = "\n".join(digests).encode()
    return hashlib.sha256(content).hexdigest() if key is None else hmac.digest(key, content, "sha256").hex()


def secret_key(folder: str | os.PathLike) -> bytes:
    """
    Read the secret key of the digests of rows from `wagle_rows.key` in a folder. If there is none, create a random one
    that only the owner of the file may read. To compare digests of several runs, copy the file into all their folders.

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
            f"{path} is not a key of {2 * _KEY_BYTES} hexadecimal digits; restore the right one, or remove it to "
            "get a new one, with which earlier digests cannot be compared."
        )
    return bytes.fromhex(text)


def _make_key(path: Path) -> None:
    """Create a private key file. Unlike with `atomic_path`, the first of two processes wins, and both use its key."""
    with temporary_folder(path.parent) as folder:
        made = folder / path.name
        made.touch(mode=0o600)
        made.write_text(secrets.token_hex(_KEY_BYTES) + "\n", encoding="ascii")
        sync(made)
        try:
            os.link(made, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(made, path)
        sync(path.parent)


def _as_json(row: Any) -> bytes:
    content = {name: value for name, value in row.items() if value is not None}
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str).encode()


def describe_rows(dataset: Dataset, folder: str | os.PathLike, *, hashed: bool = False) -> dict[str, Any]:
    """
    Describe the origin of rows, with a digest: a plain one if the rows are public, a keyed one otherwise.

    Args:
        dataset ([`~datasets.Dataset`]): Rows as they were loaded, or mapped or filtered since.
        folder (`str` or `os.PathLike`): Folder of the [`secret_key`].
        hashed (`bool`, *optional*, defaults to `False`): Whether to record only the number of rows and a keyed digest.

    Returns:
        `dict`: `source` (the repository on the Hub, or the name of the file or folder that [`~data.rows.load_rows`]
        read), `revision` (the commit) and `config` (both only of a repository on the Hub), `split`, `rows` (their
        number), and a digest, see [`rows_digest`]: `sha256` of rows of the Hub at a known commit, `hmac_sha256` of all
        others. Unknown values are `None`.
    """
    if hashed:
        return {"rows": len(dataset), "hmac_sha256": rows_digest(dataset, secret_key(folder))}
    info = dataset.info
    repository, revision = _hub_origin(dataset)
    given = None if info.dataset_name == info.builder_name else info.dataset_name  # "json" is not a name
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
    Find the repository and commit of rows. `datasets` names a folder of its cache after the commit, but keeps the name
    of the repository only in lower case. The cache of the Hub has its exact name.
    """
    folders = {Path(file["filename"]).parent.name for file in dataset.cache_files}
    commit = folders.pop() if len(folders) == 1 else ""
    if dataset.info.dataset_name is None or not re.fullmatch(
        "[0-9a-f]{40}", commit
    ):  # rows of several sources have no name
        return None, None
    for snapshot in Path(constants.HF_HUB_CACHE).glob(f"datasets--*/snapshots/{commit}"):
        return snapshot.parts[-3].removeprefix("datasets--").replace(constants.REPO_ID_SEPARATOR, "/"), commit
    return None, None


def model_commit(name: str, revision: str | None = None) -> str | None:
    """
    Find the commit from which a model was loaded, in the cache of the Hub.

    Args:
        name (`str`): Name or path that `from_pretrained` received.
        revision (`str`, *optional*): Branch, tag or commit that it received.

    Returns:
        `str`: Commit, or `None` if the model is in a folder or not in the cache.
    """
    if os.path.isdir(name):
        return None
    path = try_to_load_from_cache(name, constants.CONFIG_NAME, revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None
