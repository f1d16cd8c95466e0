"""Files that are whole or not there, written under a temporary name and then renamed; and names of shared ones."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPORT_FILE = "wagle_report.json"  # what a trainer did
EVALUATION_FILE = "wagle_eval.json"  # what `wagle eval` found
CARD_FILE = "README.md"  # what both say to others


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it on success and removed on failure. The folder must exist."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files private; these are for others too
        os.replace(temporary, path)
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
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
