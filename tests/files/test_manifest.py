import json
import shutil

import pytest

from wagle_trl.files.manifest import FileEntry, Manifest, check_same_run, files_in
from wagle_trl.files.run_folder import MANIFEST_FILE


@pytest.fixture
def folder(tmp_path):
    """A folder with two files of a run, one of them in a folder within, and their manifest."""
    folder = tmp_path / "run"
    (folder / "shards").mkdir(parents=True)
    (folder / "model").write_bytes(b"weights")
    (folder / "shards" / "one").write_bytes(b"more weights")
    Manifest.of(folder, files_in(folder), "f" * 64, objective="NPO").write(folder)
    return folder


def test_a_manifest_is_read_as_it_was_written(folder):
    manifest = Manifest.read(folder)
    assert manifest.files.keys() == {"model", "shards/one"} and manifest.files["model"].size == 7
    assert (manifest.fingerprint, manifest.facts) == ("f" * 64, {"objective": "NPO"})
    assert not manifest.changed(folder)
    assert Manifest.read(folder / "shards") is None


def test_two_folders_with_the_same_files_have_the_same_manifest(folder, tmp_path):
    shutil.copytree(folder, again := tmp_path / "again")
    Manifest.of(again, ["shards/one", "model"], "f" * 64, objective="NPO").write(again)
    assert (again / MANIFEST_FILE).read_bytes() == (folder / MANIFEST_FILE).read_bytes()


CHANGES = {
    "missing": (lambda path: path.unlink(), "is missing"),
    "longer": (lambda path: path.write_bytes(b"weights."), "has another size"),
    "other bytes": (lambda path: path.write_bytes(b"Weights"), "has another content"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is missing"),
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES)
def test_what_is_not_as_it_was_saved_is_said(change, reason, folder):
    change(folder / "model")
    assert Manifest.read(folder).changed(folder) == {"model": reason}
    assert not Manifest.read(folder).changed(folder, ["shards/one"])
    with pytest.raises(
        ValueError, match=f"run/model' {reason}: according to {MANIFEST_FILE} it belongs to another run than the files"
    ):
        check_same_run(folder, ["model"])


def test_a_file_that_an_earlier_run_left_is_not_of_this_one(folder):
    (folder / "wagle_delta.safetensors").write_bytes(b"left")
    with pytest.raises(ValueError, match="is not in the manifest"):
        check_same_run(folder, ["model", "wagle_delta.safetensors"])
    (folder / MANIFEST_FILE).unlink()
    check_same_run(folder, ["model", "wagle_delta.safetensors"])  # a folder of somebody else


def test_files_written_later_are_noted_beside_the_others(folder):
    (folder / "card").write_text("card")
    manifest = Manifest.read(folder).with_files(folder, ["card"])
    assert manifest.files.keys() == {"card", "model", "shards/one"} and manifest.fingerprint == "f" * 64


def test_neither_the_manifest_nor_what_is_being_written_are_files_of_a_run(folder):
    (folder / ".wagle-tmp-1").mkdir()
    (folder / ".wagle-tmp-1" / "half").write_text("")
    assert files_in(folder) == ["model", "shards/one"]


ENTRY = {"size": 7, "sha256": "0" * 64}
HOSTILE = {
    "no object": ([], "should be an object"),
    "no files": ({"format_version": 1}, "'files' is missing"),
    "size as text": (
        {"format_version": 1, "files": {"model": ENTRY | {"size": "7"}}},
        r"'files\.model\.size' should be a whole number",
    ),
    "a file elsewhere": (
        {"format_version": 1, "files": {"../key": ENTRY}},
        r"names '\.\./key', which is not a file in",
    ),
    "a file at the root": (
        {"format_version": 1, "files": {"/etc/passwd": ENTRY}},
        "which is not a file in its folder",
    ),
    "a name that commands": (
        {"format_version": 1, "files": {"\x1b[2J": ENTRY}},
        r"names '\\x1b\[2J', which is not a file",
    ),
    "another version": ({"format_version": 2, "files": {}}, "is not a manifest of format version 1"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_manifest_of_another_shape_is_refused(content, message, folder):
    (folder / MANIFEST_FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        Manifest.read(folder)
    assert str(folder / MANIFEST_FILE) in str(caught.value) and str(caught.value).isprintable()


def test_sizes_and_digests_are_those_of_the_files(folder):
    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"  # printf weights | sha256sum
    assert Manifest.read(folder).files["model"] == FileEntry(7, digest)
