import hashlib
import hmac
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from datasets import Dataset, concatenate_datasets, load_dataset

from wagle_trl.data.formats import to_trl
from wagle_trl.data.provenance import _as_json, describe_rows, model_commit, rows_digest, secret_key
from wagle_trl.data.rows import load_rows
from wagle_trl.files.run_folder import KEY_FILE

ROWS = [{"question": f"Where is {name}?", "answer": "Überall."} for name in ("Ada", "Bo", "Cy")]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "my rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A cache of the Hub with a data set and a model, at one commit each."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    (cache / "datasets--locuslab--TOFU" / "snapshots" / COMMIT).mkdir(parents=True)
    model = cache / "models--user--base"
    (model / "snapshots" / COMMIT).mkdir(parents=True)
    (model / "snapshots" / COMMIT / "config.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return cache


@pytest.fixture
def from_hub(rows_file, hub_cache, tmp_path):
    """Rows as `load_dataset("locuslab/TOFU", "forget10", split="train")` leaves them: in a folder named by the commit."""
    loaded = load_dataset("json", data_files=str(rows_file), split="train", cache_dir=str(tmp_path / "json"))
    folder = tmp_path / "datasets" / "locuslab___tofu" / "forget10" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    shutil.copy(loaded.cache_files[0]["filename"], folder / "tofu-train.arrow")
    info = loaded.info.copy()
    info.dataset_name, info.config_name = "tofu", "forget10"
    return Dataset.from_file(str(folder / "tofu-train.arrow"), info=info, split=loaded.split)


def test_the_digest_can_be_recomputed_from_its_description():
    digests = [
        hashlib.sha256(f'{{"answer":"Überall.","question":"{row["question"]}"}}'.encode()).hexdigest() for row in ROWS
    ]
    expected = hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
    assert rows_digest(Dataset.from_list(ROWS)) == expected


def test_the_digest_knows_no_order_of_rows_or_columns_and_no_empty_columns():
    digest = rows_digest(Dataset.from_list(ROWS))
    others = [{"note": None, "answer": row["answer"], "question": row["question"]} for row in reversed(ROWS)]
    assert rows_digest(Dataset.from_list(others)) == digest
    assert rows_digest(Dataset.from_list(ROWS).with_format("numpy")) == digest


def test_the_digest_knows_every_word_and_how_often_a_row_is_there():
    digest = rows_digest(Dataset.from_list(ROWS))
    assert rows_digest(Dataset.from_list(ROWS[:2])) != digest
    assert rows_digest(Dataset.from_list([*ROWS, ROWS[0]])) != digest
    assert rows_digest(Dataset.from_list([*ROWS[:2], ROWS[2] | {"answer": "Nirgends."}])) != digest


def test_a_keyed_digest_is_the_same_with_the_same_key_only():
    rows, other = Dataset.from_list(ROWS), Dataset.from_list(ROWS[:2])
    digests = {
        rows_digest(rows, b"a" * 32),
        rows_digest(rows, b"b" * 32),
        rows_digest(rows),
        rows_digest(other, b"a" * 32),
    }
    assert len(digests) == 4
    assert rows_digest(Dataset.from_list(ROWS[::-1]), b"a" * 32) == rows_digest(rows, b"a" * 32)
    content = "\n".join(sorted(hashlib.sha256(_as_json(row)).hexdigest() for row in ROWS)).encode()
    assert rows_digest(rows, b"a" * 32) == hmac.new(b"a" * 32, content, "sha256").hexdigest()


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path):
    key = secret_key(tmp_path / "run")
    assert len(key) == 32 and secret_key(tmp_path / "run") == key != secret_key(tmp_path / "other")
    path = tmp_path / "run" / KEY_FILE
    assert path.read_text() == key.hex() + "\n" and path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [KEY_FILE]


def test_of_many_that_make_a_key_one_wins_and_all_use_it(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for number in range(20):
            keys = set(pool.map(secret_key, [tmp_path / str(number)] * 8))
            assert keys == {bytes.fromhex((tmp_path / str(number) / KEY_FILE).read_text())}


def test_a_key_is_made_on_a_disk_without_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links")))
    key = secret_key(tmp_path)
    assert secret_key(tmp_path) == key and os.listdir(tmp_path) == [KEY_FILE]


@pytest.mark.parametrize("text", ["", "ab" * 31, "xy" * 32, "\x1b" * 64, "ä" * 64])
def test_what_is_no_key_is_one_error(text, tmp_path):
    (tmp_path / KEY_FILE).write_text(text)
    with pytest.raises(
        ValueError, match=r"wagle_rows\.key is not a key of 64 hexadecimal digits; restore the right one"
    ):
        secret_key(tmp_path)


def test_rows_of_a_file_are_known_by_its_name_after_they_were_formatted(rows_file, tiny_tokenizer, tmp_path):
    rows = to_trl(load_rows(rows_file), tiny_tokenizer).filter(lambda row: "Bo" not in row["prompt"])
    assert describe_rows(rows, tmp_path) == {
        "source": "my rows.jsonl",
        "revision": None,
        "config": None,
        "split": None,
        "rows": 2,
        "hmac_sha256": rows_digest(rows, secret_key(tmp_path)),
    }
    keyed = {"rows": 2, "hmac_sha256": rows_digest(rows, secret_key(tmp_path))}
    assert describe_rows(rows, tmp_path, hashed=True) == keyed


def test_rows_of_a_folder_are_known_by_its_name(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert describe_rows(load_rows(tmp_path / "saved"), tmp_path)["source"] == "saved"


def test_rows_of_the_hub_are_known_by_repository_commit_configuration_and_split(from_hub, tiny_tokenizer, tmp_path):
    expected = {"source": "locuslab/TOFU", "revision": COMMIT, "config": "forget10", "split": "train"}
    for rows, count in ((from_hub, 3), (to_trl(from_hub, tiny_tokenizer), 3), (from_hub.select([0]), 1)):
        described = describe_rows(rows, tmp_path / "run")
        assert described | expected == described
        assert (described["rows"], described["sha256"]) == (count, rows_digest(rows))
    assert not (tmp_path / "run").exists()  # they need no key
    assert describe_rows(from_hub, tmp_path / "run", hashed=True).keys() == {"rows", "hmac_sha256"}


def test_rows_whose_source_is_not_known_for_sure_have_none(from_hub, rows_file, hub_cache, tmp_path):
    in_memory = Dataset.from_list(ROWS)
    by_builder = load_dataset("json", data_files=str(rows_file), split="train", cache_dir=str(tmp_path / "json"))
    for rows in (in_memory, concatenate_datasets([from_hub, in_memory]), by_builder):
        described = describe_rows(rows, tmp_path)
        assert (described["source"], described["revision"]) == (None, None)
        assert described.get("sha256") is None and described["hmac_sha256"]
    (hub_cache / "datasets--locuslab--TOFU" / "snapshots" / COMMIT).rmdir()
    described = describe_rows(from_hub, tmp_path)
    assert (described["source"], described["revision"]) == ("tofu", None)


def test_the_commit_of_a_model_is_that_of_the_cache(hub_cache, tmp_path):
    assert model_commit("user/base") == model_commit("user/base", COMMIT) == COMMIT
    assert model_commit("user/base", "another-branch") is None
    assert model_commit(str(tmp_path)) is None
