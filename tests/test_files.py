import json
import os

import pytest

from wagle_trl.files import atomic_path, write_json


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
