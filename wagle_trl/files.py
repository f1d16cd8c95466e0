"""Files that are whole or not there, written under a temporary name and then renamed; and names of shared ones."""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

REPORT_FILE = "wagle_report.json"  # what a trainer did
EVALUATION_FILE = "wagle_eval.json"  # what `wagle eval` found
CARD_FILE = "README.md"  # what both say to others
REFERENCE_FILE = "wagle_reference.safetensors"  # what a model said of the rows to forget, in checkpoints

_TEMPORARY = ".wagle-tmp-"
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# How safetensors, tokenizers and torch say it, whose errors are no `OSError`
_DISK_WORDS = ("os error 28", "os error 122", "os error 27", "os error 5)", "No space left", "PytorchStreamWriter")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """
    A temporary path beside `path`, renamed to it on success and removed on failure. The folder must exist.

    What was written is on the disk when the name appears. What processes left that were killed here is removed.
    """
    path = Path(path)
    remove_strays(path.parent)
    with writing(path), _locked(lambda: _new_file(path)) as temporary:
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())  # mkstemp makes files private; these are for others too
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to it on success and removed on failure. `path` must be new or empty."""
    path = Path(path).resolve()
    if os.path.ismount(path):
        raise ValueError(f"'{path}' is a mount point, which nothing can be renamed to; choose a folder in it.")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"'{path}' exists and is not an empty folder; choose another, nothing is overwritten.")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_strays(path.parent)
    with writing(path), _locked(lambda: tempfile.mkdtemp(dir=path.parent, prefix=_TEMPORARY)) as temporary:
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for part in (*temporary.rglob("*"), temporary):
                sync(part)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder`, of the same name in every process, to write files in that are then moved out."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_strays(folder)
    stage = folder / f"{_TEMPORARY}save"

    def make() -> str:
        stage.mkdir()
        return str(stage)

    with writing(folder), _locked(make):
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A folder in `folder`, for files that are needed for a while."""
    remove_strays(folder)
    with _locked(lambda: tempfile.mkdtemp(dir=folder, prefix=_TEMPORARY)) as temporary:
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _new_file(path: Path) -> str:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY, suffix=path.suffix)
    os.close(handle)
    return name


@contextmanager
def _locked(make: Callable[[], str]) -> Iterator[Path]:
    """A new file or folder, held by a lock that the system drops with this process, however that ends."""
    while True:
        name = make()
        descriptor = os.open(name, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks: then nobody removes strays either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.exists(name):  # else taken for a stray before the lock was there
            break
        os.close(descriptor)
    try:
        yield Path(name)
    finally:
        os.close(descriptor)


def remove_strays(folder: Path) -> None:
    """Remove what [`atomic_path`] and [`atomic_folder`] were writing in a folder when their process was killed."""
    for stray in folder.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):  # in use by another process, or gone
            descriptor = os.open(stray, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
            finally:
                os.close(descriptor)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk: after a loss of power they are as they are now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """What libraries raise where a disk is full, broken or read-only is one `OSError` that names `path`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, _CannotWrite) or not _is_of_disk(error):
            raise
        reason = (isinstance(error, OSError) and error.strerror) or "No space left on the disk, or it is broken"
        raise _CannotWrite(f"Cannot write '{path}': {reason}. What was whole before still is.") from error


class _CannotWrite(OSError):
    """Names a path already."""


def _is_of_disk(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _DISK_ERRORS
    return any(words in str(error) for words in _DISK_WORDS)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_json(path: str | os.PathLike, content: Any) -> Path:
    """Write `content` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return Path(path)


def check_writable(output_dir: str) -> None:
    """`output_dir` must be a folder that files can be written to; it is made if need be."""
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write to output_dir '{output_dir}': {error.strerror}.") from error
