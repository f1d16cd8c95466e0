"""Atomic files and folders: written under a temporary name, synced to the disk and then renamed."""

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
# Messages of safetensors and tokenizers, then of torch, whose errors are not `OSError`
_DISK_WORDS = ("os error 28", "os error 122", "os error 27", "os error 5)", "No space left")
_DISK_WORDS += ("PytorchStreamWriter", "inline_container", "iostream error")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """
    Give a temporary path beside `path`, which is renamed to `path` on success and removed on failure. The folder must
    exist.

    The content is on the disk before the name appears. Leftovers of processes that were killed are removed.
    """
    path = Path(path)
    with (
        translate_disk_errors(path),
        _temporary(path.parent, partial(Path.touch, exist_ok=False), path.suffix) as temporary,
    ):
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """
    Give a temporary folder beside `path`, which is renamed to `path` on success and removed on failure. `path` must be
    new or an empty folder.
    """
    path = Path(path).resolve()
    if os.path.ismount(path):
        raise ValueError(f"'{path}' is a mount point, which cannot be replaced; choose a folder in it.")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(
            f"'{path}' exists and is not an empty folder; choose another, because nothing is overwritten."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with translate_disk_errors(path), temporary_folder(path.parent) as temporary:
        yield temporary
        for part in (*temporary.rglob("*"), temporary):
            sync(part)
        os.replace(temporary, path)
        sync(path.parent)


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder in `folder`, for files that [`move_into_place`] moves. `folder` is created if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    with translate_disk_errors(folder), temporary_folder(folder) as stage:
        yield stage


def move_into_place(stage: Path, folder: Path, names: Sequence[str], instead_of: Iterable[str] = ()) -> None:
    """
    Move files into a folder together, over existing ones. Neither a full disk nor a signal interrupts the moves.

    Args:
        stage (`pathlib.Path`): A [`staging_folder`] of `folder`.
        folder (`pathlib.Path`): Folder that receives the files.
        names (`list[str]`): Relative names of the files, separated by `/`. A file that describes the others comes last.
        instead_of (iterable of `str`, *optional*): Files of the folder that these replace and that are removed.
    """
    removed = list(instead_of)
    for name in names:
        sync(stage / name)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    try:
        _move(stage, folder, names, removed)
    except KeyboardInterrupt:
        _move(stage, folder, names, removed)
        raise
    for place in {(folder / name).parent for name in names}:
        sync(place)


def _move(stage: Path, folder: Path, names: Sequence[str], removed: Sequence[str]) -> None:
    for name in removed:
        (folder / name).unlink(missing_ok=True)
    for name in names:
        with suppress(FileNotFoundError):  # already moved
            os.replace(stage / name, folder / name)


def remove_folder(folder: Path) -> None:
    """Remove a folder atomically: it never holds only some of its files."""
    with temporary_folder(folder.parent) as temporary:
        os.replace(folder, temporary / folder.name)


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder in `folder`, which is removed at the end."""
    with _temporary(folder, Path.mkdir) as temporary:
        yield temporary


@contextmanager
def _temporary(folder: Path, make: Callable[[Path], None], suffix: str = "") -> Iterator[Path]:
    """
    Make a file or folder under a unique name, and remove it at the end. Until then it is locked. The system releases the
    lock when the process ends, even if it is killed.
    """
    remove_leftovers(folder)
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
    """Lock `path` and return the descriptor; `None` if another process removed `path` as a leftover before."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a file system without locks, where no process removes leftovers either
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    if path.exists():
        return descriptor
    os.close(descriptor)
    return None


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of processes that were killed while they wrote to a folder."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):  # in use by another process, or gone
            descriptor = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(leftover)
            finally:
                os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, so that they survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def translate_disk_errors(path: str | os.PathLike) -> Iterator[None]:
    """
    Translate errors of libraries about a full, broken or read-only disk into one `OSError` that names `path`. Of nested
    contexts the outermost one counts, because the paths of inner ones may be temporary.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            is_disk_error = error.errno in _DISK_ERRORS
        else:
            is_disk_error = isinstance(error, _DiskError) or any(words in str(error) for words in _DISK_WORDS)
        if not is_disk_error:
            raise
        reason = getattr(error, "strerror", None) or "No space left on the disk, or it is broken"
        raise _DiskError(path, reason) from error


class _DiskError(OSError):
    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f"Cannot write '{path}': {reason}. Existing files are unchanged.")
        self.strerror = reason


def write_json(path: str | os.PathLike, content: Any) -> Path:
    """Write `content` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return Path(path)


def check_writable(output_dir: str) -> None:
    """Create `output_dir` if needed; a `ValueError` if no files can be written to it."""
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with temporary_folder(Path(output_dir)):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write to output_dir '{output_dir}': {error.strerror}.") from error
