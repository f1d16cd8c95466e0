import errno
import json
import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE

from wagle_trl.files import atomic as files
from wagle_trl.files.atomic import (
    atomic_folder,
    atomic_path,
    move_into_place,
    remove_folder,
    staging_folder,
    temporary_folder,
    translate_disk_errors,
    write_json,
)

from ..support.fixed_costs import fsync


@pytest.fixture(autouse=True)
def what_is_written_reaches_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", fsync)


# What writes a temporary file or folder somewhere, given a folder
WRITERS = {
    "file": lambda folder: atomic_path(folder / "file.json"),
    "folder": lambda folder: atomic_folder(folder / "new"),
    "stage": staging_folder,
    "temporary": temporary_folder,
}


def test_a_file_appears_under_its_name_with_its_suffix(tmp_path):
    with atomic_path(tmp_path / "mask.png") as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path and temporary.suffix == ".png"
        assert not (tmp_path / "mask.png").exists()
    assert os.listdir(tmp_path) == ["mask.png"]
    assert (tmp_path / "mask.png").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_file_and_leaves_nothing_behind(error, tmp_path):
    (tmp_path / "file.json").write_text("old")
    with pytest.raises(error), atomic_path(tmp_path / "file.json") as temporary:
        temporary.write_text("half")
        raise error
    assert os.listdir(tmp_path) == ["file.json"]
    assert (tmp_path / "file.json").read_text() == "old"


def test_a_failing_rename_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = write_json(tmp_path / "file.json", "old")

    def fail(*paths):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, "new")
    assert os.listdir(tmp_path) == ["file.json"]
    assert json.loads(path.read_text()) == "old"


def test_unserialisable_content_keeps_the_old_file(tmp_path):
    path = write_json(tmp_path / "file.json", {"old": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"new": object()})
    assert os.listdir(tmp_path) == ["file.json"]
    assert json.loads(path.read_text()) == {"old": 1}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_get_the_permissions_of_any_other_new_file(umask, tmp_path):
    before = os.umask(umask)
    try:
        path = write_json(tmp_path / "file.json", [])
        assert os.umask(umask) == umask  # still as it was
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_json_is_indented_and_ends_with_a_newline(tmp_path):
    content = {"name": "Tromsø", "values": [1, 2.5, None]}
    path = write_json(str(tmp_path / "file.json"), content)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert text == json.dumps(content, indent=2) + "\n"


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_json(tmp_path / "missing" / "file.json", {})


# Files that belong together


def test_files_land_together_over_what_was_there(tmp_path):
    write_json(tmp_path / "a.json", "old")
    with staging_folder(tmp_path) as stage:
        for name in ("a.json", "b.json"):
            write_json(stage / name, "new")
        (stage / "within").mkdir()
        write_json(stage / "within" / "c.json", "new")
        assert (tmp_path / "a.json").read_text() == '"old"\n'
        move_into_place(stage, tmp_path, ["a.json", "within/c.json"])
    assert sorted(path.name for path in tmp_path.rglob("*.json")) == ["a.json", "c.json"]
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())
    assert {path.read_text() for path in tmp_path.rglob("*.json")} == {'"new"\n'}


def test_a_signal_does_not_part_files_that_land(tmp_path, monkeypatch):
    rename, moved = os.replace, []

    def interrupted(source, place):
        rename(source, place)
        moved.append(Path(place).name)
        if moved == ["a.json"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), staging_folder(tmp_path) as stage:
        for name in ("a.json", "b.json"):
            write_json(stage / name, "new")
        monkeypatch.setattr(os, "replace", interrupted)
        move_into_place(stage, tmp_path, ["a.json", "b.json"])
    assert moved == ["a.json", "b.json"] and sorted(os.listdir(tmp_path)) == moved


def test_a_folder_goes_at_once(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    write_json(tmp_path / "old" / "file.json", "old")
    monkeypatch.setattr(files.shutil, "rmtree", lambda *args, **options: os._exit(0))
    if os.fork() == 0:
        remove_folder(tmp_path / "old")
    os.wait()
    assert not (tmp_path / "old").exists()
    monkeypatch.undo()
    write_json(tmp_path / "file.json", "new")
    assert os.listdir(tmp_path) == ["file.json"]


# Strays


@contextmanager
def process_in(writer, folder):
    """A process that is writing, from when it has its temporary file."""
    reader, told = os.pipe()
    child = os.fork()
    if child == 0:
        with writer(folder) as temporary:
            (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
            os.write(told, b"!")
            signal.pause()
    os.read(reader, 1)
    yield child
    os.close(reader)
    os.close(told)


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_what_a_killed_process_left_is_removed_by_the_next_write_and_what_a_live_one_writes_is_not(writer, tmp_path):
    with process_in(writer, tmp_path) as child:
        (stray,) = tmp_path.iterdir()
        write_json(tmp_path / "other.json", "other")
        assert stray.exists()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        write_json(tmp_path / "other.json", "new")
        assert os.listdir(tmp_path) == ["other.json"]


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_several_processes_write_in_one_folder_at_once(writer, tmp_path):
    with process_in(writer, tmp_path) as child, writer(tmp_path) as temporary:
        assert len(os.listdir(tmp_path)) == 2 and temporary.exists()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_temporary_file_that_is_taken_for_a_stray_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, taken = files._locked, []

    def slow(path):
        if not taken:
            taken.append(path)
            files.remove_leftovers(tmp_path)
        return lock(path)

    monkeypatch.setattr(files, "_locked", slow)
    write_json(tmp_path / "file.json", "new")
    assert taken and os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_signal_while_a_temporary_file_is_removed_leaves_none(writer, tmp_path, monkeypatch):
    remove, calls = files._remove, []

    def interrupted(path):
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr(files, "_remove", interrupted)
    with pytest.raises(KeyboardInterrupt), writer(tmp_path) as temporary:
        if temporary.is_dir():
            (temporary / "file").write_text("half")
    assert not any(name.startswith(".") for name in os.listdir(tmp_path))


# Full and broken disks


@contextmanager
def short_files(size=64):
    """The system lets no file grow larger: all libraries meet a real error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def raises(error):
    def write(path):
        raise error

    return write


LIBRARIES = {
    "python": lambda path: path.write_text("text" * 2000),
    "torch": lambda path: torch.save(torch.zeros(100_000), path),
    "safetensors": lambda path: save_file({"weights": torch.zeros(100_000)}, path),
    "matplotlib": lambda path: Figure().savefig(path, format="png"),
    "tokenizers": lambda path: Tokenizer(BPE({"a": 0}, [])).save(str(path)),
    "torch at the end": raises(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")),
    "torch's stream": raises(RuntimeError("basic_ios::clear: iostream error")),
    "quota": raises(OSError(errno.EDQUOT, "Disk quota exceeded")),
    "broken": raises(OSError(errno.EIO, "Input/output error")),
    "read-only": raises(OSError(errno.EROFS, "Read-only file system")),
}


@pytest.mark.parametrize("write", LIBRARIES.values(), ids=LIBRARIES)
def test_what_libraries_raise_on_a_disk_that_takes_no_more_is_one_error_that_names_the_file(write, tmp_path):
    with (
        pytest.raises(OSError) as caught,
        short_files(),
        translate_disk_errors("out"),
        translate_disk_errors(".wagle-tmp-1/file"),
    ):
        write(tmp_path / "file")
    assert str(caught.value).startswith("Cannot write 'out': ")
    assert str(caught.value).endswith(". Existing files are unchanged.")
    assert "wagle-tmp" not in str(caught.value)


@pytest.mark.parametrize("reason", ["Input/output error", "Read-only file system", "Disk quota exceeded"])
def test_the_reason_that_the_system_gives_is_kept(reason):
    numbers = {os.strerror(number): number for number in errno.errorcode}
    with (
        pytest.raises(OSError, match=f"Cannot write 'out': {reason}"),
        translate_disk_errors("out"),
        translate_disk_errors("inner"),
    ):
        raise OSError(numbers[reason], reason)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
        PermissionError(errno.EACCES, "Permission denied", "x"),
        ValueError("something else"),
        RuntimeError("something else"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, translate_disk_errors("out"):
        raise error
    assert caught.value is error
