"""`wagle_manifest.json`: which files in a folder belong together, and of which weights they speak.

It is written last. A checkpoint without one was cut off; a file that is not as the manifest says was changed since, or is
of another run.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from .atomic import land, sync, write_json
from .reading import read_json
from .run_folder import MANIFEST_FILE

FORMAT_VERSION = 1
_THREADS = 2


@dataclass(frozen=True)
class FileEntry:
    """
    A file as it was when the folder was whole.

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
    Files of a run, or of a checkpoint of one.

    Args:
        files (`dict[str, FileEntry]`): By name; `/` separates the names of folders within.
        fingerprint (`str`, *optional*): [`~masks.fingerprint.model_fingerprint`] of the weights that the files speak of.
        facts (`dict`): What else resuming depends on, by name.
    """

    files: dict[str, FileEntry]
    fingerprint: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, names: Iterable[str], fingerprint: str | None = None, **facts: Any) -> "Manifest":
        """That of files as they are now, on the disk."""
        names = list(names)
        with ThreadPoolExecutor(_THREADS) as pool:  # the disk is at work while they are hashed
            synced = pool.map(sync, [folder / name for name in names])
            entries = _entries(folder, names)
            list(synced)  # raises what came up
        return cls(entries, fingerprint, facts)

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """That of a folder, if it has one; a `ValueError` if that is not sound."""
        path = folder / MANIFEST_FILE
        if not path.is_file():
            return None
        content = read_json(path, _Content)
        for name in content["files"]:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not name.isprintable():
                raise ValueError(f"{path} names {name[:80]!r}, which is no file in its folder.")
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"{path} is not a manifest of format version {FORMAT_VERSION}.")
        files = {name: FileEntry(**entry) for name, entry in content["files"].items()}
        return cls(files, content.get("fingerprint"), content.get("facts", {}))

    def write(self, folder: Path) -> Path:
        """Mark a folder as whole: its files are on the disk, then the manifest is."""
        for place in {(folder / name).parent for name in self.files}:
            sync(place)
        return self._save(folder)

    def land(self, stage: Path, folder: Path, instead_of: Iterable[str] = (), beside: Iterable[str] = ()) -> None:
        """
        Have its files take their places in a folder, and the manifest after them.

        Args:
            stage (`pathlib.Path`): A [`~files.atomic.staging_folder`] of `folder`. Files that it lacks are in `folder` already.
            folder (`pathlib.Path`): Where they go.
            instead_of (iterable of `str`, *optional*): Files of the folder that go when these come.
            beside (iterable of `str`, *optional*): Files of the stage that come with these, and are not of the manifest.
        """
        self._save(stage)
        own = (name for name in self.files if (stage / name).is_file())
        land(stage, folder, [*beside, *own, MANIFEST_FILE], instead_of)

    def _save(self, folder: Path) -> Path:
        return write_json(folder / MANIFEST_FILE, {"format_version": FORMAT_VERSION, **asdict(self)})

    def with_files(self, folder: Path, names: Iterable[str]) -> "Manifest":
        """The same, with some files as they are now."""
        return Manifest(self.files | _entries(folder, names), self.fingerprint, self.facts)

    def changed(self, folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
        """
        Compare files with what they should be.

        Args:
            folder (`pathlib.Path`): The folder.
            names (iterable of `str`, *optional*): The files; by default all of the manifest.

        Returns:
            `dict[str, str]`: What is wrong with each file that is not as the manifest says, such as `"is missing"`.
        """
        return dict(_changes(self.files, folder, self.files if names is None else names))


def land_in_save(stage: Path, folder: Path, names: list[str]) -> None:
    """
    Have files that were made from the others in a folder take their places there, in its manifest, too, if it has one.

    Args:
        stage (`pathlib.Path`): A [`~files.atomic.staging_folder`] of `folder`.
        folder (`pathlib.Path`): Where they go.
        names (`list[str]`): The files.
    """
    save = Manifest.read(folder)
    if save is None:
        land(stage, folder, names)
    else:
        save.with_files(stage, names).land(stage, folder)


def check_of_one_run(folder: Path, names: Iterable[str]) -> None:
    """A `ValueError` if a folder has a manifest, and files in it are not those that were saved with the others."""
    manifest = Manifest.read(folder)
    for name, reason in (manifest.changed(folder, names) if manifest else {}).items():
        raise ValueError(
            f"'{folder / name}' {reason}: by {MANIFEST_FILE} it is of another run than the files beside it, or was changed "
            "since. Save the run again, or move away what is not of it."
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
    """Names of all files in a folder and in those within, but a manifest and what is being written."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in paths)
    return sorted(name for name in names if name != MANIFEST_FILE and not name.startswith("."))
