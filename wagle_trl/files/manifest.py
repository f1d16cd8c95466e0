"""`wagle_manifest.json`: which files in a folder belong together, and which weights they describe.

The manifest is written last. A checkpoint without one is incomplete. A file that differs from the manifest was changed
later, or belongs to another run.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from .atomic import move_into_place, sync, write_json
from .reading import read_json
from .run_folder import MANIFEST_FILE

FORMAT_VERSION = 1
_THREADS = 2


@dataclass(frozen=True)
class FileEntry:
    """
    Size and digest of a file when the folder was complete.

    Args:
        size (`int`): Number of bytes.
        sha256 (`str`): Digest of the content.
    """

    size: int
    sha256: str


class _Entry(TypedDict):
    size: int
    sha256: str


class _Content(TypedDict):
    format_version: int
    files: dict[str, _Entry]
    fingerprint: NotRequired[str | None]
    facts: NotRequired[dict[str, Any]]


@dataclass(frozen=True)
class Manifest:
    """
    Files of a run or of a checkpoint.

    Args:
        files (`dict[str, FileEntry]`): Entries by relative name, separated by `/`.
        fingerprint (`str`, *optional*): [`~masks.fingerprint.model_fingerprint`] of the weights that the files describe.
        facts (`dict`): Other values that resuming depends on, by name.
    """

    files: dict[str, FileEntry]
    fingerprint: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, names: Iterable[str], fingerprint: str | None = None, **facts: Any) -> "Manifest":
        """Sync files to the disk and make their manifest."""
        names = list(names)
        with ThreadPoolExecutor(_THREADS) as pool:  # the disk writes while the files are hashed
            synced = pool.map(sync, [folder / name for name in names])
            entries = _entries(folder, names)
            list(synced)  # raises errors of the threads
        return cls(entries, fingerprint, facts)

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """Read the manifest of a folder, if it has one; a `ValueError` if it is damaged."""
        path = folder / MANIFEST_FILE
        if not path.is_file():
            return None
        content = read_json(path, _Content)
        for name in content["files"]:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not name.isprintable():
                raise ValueError(f"{path} names {name[:80]!r}, which is not a file in its folder.")
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"{path} is not a manifest of format version {FORMAT_VERSION}.")
        files = {name: FileEntry(**entry) for name, entry in content["files"].items()}
        return cls(files, content.get("fingerprint"), content.get("facts", {}))

    def write(self, folder: Path) -> Path:
        """Mark a folder as complete: sync the names of its files to the disk, then write the manifest."""
        for place in {(folder / name).parent for name in self.files}:
            sync(place)
        return self._save(folder)

    def move_into_place(self, stage: Path, folder: Path, instead_of: Iterable[str] = ()) -> None:
        """
        Move the files into a folder, and the manifest after them.

        Args:
            stage (`pathlib.Path`):
                A [`~files.atomic.staging_folder`] of `folder`. Files that are not in it are in `folder` already.
            folder (`pathlib.Path`): Folder that receives the files.
            instead_of (iterable of `str`, *optional*): Files of the folder that these replace and that are removed.
        """
        self._save(stage)
        staged = [name for name in self.files if (stage / name).is_file()]
        move_into_place(stage, folder, [*staged, MANIFEST_FILE], instead_of)

    def _save(self, folder: Path) -> Path:
        return write_json(folder / MANIFEST_FILE, {"format_version": FORMAT_VERSION, **asdict(self)})

    def with_files(self, folder: Path, names: Iterable[str]) -> "Manifest":
        """Copy the manifest with new entries for some files."""
        return Manifest(self.files | _entries(folder, names), self.fingerprint, self.facts)

    def changed(self, folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
        """
        Compare files with their entries.

        Args:
            folder (`pathlib.Path`): Folder of the files.
            names (iterable of `str`, *optional*): Names of the files; by default all files of the manifest.

        Returns:
            `dict[str, str]`: What is wrong with each file that differs from its entry, such as `"is missing"`.
        """
        return dict(_changes(self.files, folder, self.files if names is None else names))


def check_same_run(folder: Path, names: Iterable[str]) -> None:
    """Raise a `ValueError` if a folder has a manifest and files differ from it."""
    manifest = Manifest.read(folder)
    for name, reason in (manifest.changed(folder, names) if manifest else {}).items():
        raise ValueError(
            f"'{folder / name}' {reason}: according to {MANIFEST_FILE} it belongs to another run than the files beside "
            "it, or was changed later. Save the run again, or move away the files that do not belong to it."
        )


def _changes(files: dict[str, FileEntry], folder: Path, names: Iterable[str]):
    same_size = []
    for name in names:
        if name not in files:
            yield name, "is not in the manifest"
        elif not (folder / name).is_file():
            yield name, "is missing"
        elif (folder / name).stat().st_size != files[name].size:
            yield name, "has another size"
        else:
            same_size.append(name)
    for name, entry in _entries(folder, same_size).items():
        if entry != files[name]:
            yield name, "has another content"


def _entries(folder: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    names = sorted(names)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _entry(folder / name), names)))


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def files_in(folder: Path) -> list[str]:
    """List the files in a folder and its subfolders, except for the manifest and temporary files."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in paths)
    return sorted(name for name in names if name != MANIFEST_FILE and not name.startswith("."))
