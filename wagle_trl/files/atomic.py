"""Files that are whole or not there, written under a temporary name and then renamed; and names of shared ones."""

import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

_TEMPORARY = ".wagle-tmp-"
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# How safetensors and tokenizers say it, then torch, whose errors are no `OSError`
_DISK_WORDS = ("os error 28", "os error 122", "os error 27", "os error 5)", "No space left")
_DISK_WORDS += ("PytorchStreamWriter", "inline_container", "iostream error")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """
    A temporary path beside `path`, renamed to it on success and removed on failure. The folder must exist.

    What was written is on the disk when the name appears. What processes left that were killed here is removed.
    """
    path = Path(path)
    with writing(path), _temporary(path.parent, partial(Path.touch, exist_ok=False), path.suffix) as temporary:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to it on success and removed on failure. `path` must be new or empty."""
    path = Path(path).resolve()
    if os.path.ismount(path):
        raise ValueError(f"'{path}' is a mount point, which nothing can be renamed to; choose a folder in it.")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"'{path}' exists and is not an empty folder; choose another, nothing is overwritten.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), temporary_folder(path.parent) as temporary:
        yield temporary
        for part in (*temporary.rglob("*"), temporary):
            sync(part)
        os.replace(temporary, path)
        sync(path.parent)


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder`, which is made if need be, to write files in that then [`land`]."""
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder), temporary_folder(folder) as stage:
        yield stage


def land(stage: Path, folder: Path, names: Sequence[str], instead_of: Iterable[str] = ()) -> None:
    """
    Have files take their places together, over what was there. Neither a full disk nor a signal comes between them.

    Args:
        stage (`pathlib.Path`): A [`staging_folder`] of `folder`.
        folder (`pathlib.Path`): Where they go.
        names (`list[str]`): The files, the one that speaks of the others last; `/` separates folders within.
        instead_of (iterable of `str`, *optional*): Files of the folder that go when these come.
    """
    gone = list(instead_of)
    for name in names:
        sync(stage / name)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    try:
        _move(stage, folder, names, gone)
    except KeyboardInterrupt:
        _move(stage, folder, names, gone)
        raise
    for place in {(folder / name).parent for name in names}:
        sync(place)


def _move(stage: Path, folder: Path, names: Sequence[str], gone: Sequence[str]) -> None:
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    for name in names:
        with suppress(FileNotFoundError):  # moved already
            os.replace(stage / name, folder / name)


def remove_folder(folder: Path) -> None:
    """Remove a folder at once: there is no moment at which it holds a part of its files."""
    with temporary_folder(folder.parent) as temporary:
        os.replace(folder, temporary / folder.name)


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A folder in `folder`, for files that are needed for a while."""
    with _temporary(folder, Path.mkdir) as temporary:
        yield temporary


@contextmanager
def _temporary(folder: Path, make: Callable[[Path], None], suffix: str = "") -> Iterator[Path]:
    """
    A file or folder under a name of its own, removed at the end. Until then it is held by a lock that the system drops
    with this process, however that ends.
    """
    remove_strays(folder)
    while True:
        path = folder / f"{_TEMPORARY}{secrets.token_hex(8)}{suffix}"
        try:
            make(path)
            descriptor = _locked(path)
            if descriptor is None:
                continue
            try:
                yield path
                return
            finally:
                os.close(descriptor)
        finally:
            try:
                _remove(path)
            except KeyboardInterrupt:
                _remove(path)
                raise


def _locked(path: Path) -> int | None:
    """Descriptor of a lock; `None` if another process took `path` for a stray before the lock was there."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a file system without locks: then nobody removes strays either
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    if path.exists():
        return descriptor
    os.close(descriptor)
    return None


def remove_strays(folder: Path) -> None:
    """Remove what [`atomic_path`] and the others were writing in a folder when their process was killed."""
    for stray in folder.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):  # in use by another process, or gone
            descriptor = os.open(stray, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(stray)
            finally:
                os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk: after a loss of power they are as they are now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """
    What libraries raise where a disk is full, broken or read-only is one `OSError` that names `path`. Of several within
    each other the outermost is what the user knows: others may be of temporary names.
    """
    try:
        yield
    except Exception as error:
        if not _is_of_disk(error):
            raise
        raise _CannotWrite(
            path, getattr(error, "strerror", None) or "No space left on the disk, or it is broken"
        ) from error


class _CannotWrite(OSError):
    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f"Cannot write '{path}': {reason}. What was whole before still is.")
        self.strerror = reason


def _is_of_disk(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _DISK_ERRORS
    return isinstance(error, _CannotWrite) or any(words in str(error) for words in _DISK_WORDS)


def write_json(path: str | os.PathLike, content: Any) -> Path:
    """Write `content` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return Path(path)


def check_writable(output_dir: str) -> None:
    """`output_dir` must be a folder that files can be written to; it is made if need be."""
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with temporary_folder(Path(output_dir)):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write to output_dir '{output_dir}': {error.strerror}.") from error
