import json

import pytest

from wagle_trl.evaluation.resumable_records import PartialRecords


def record(index, **fields):
    """A whole record, as an evaluation keeps it."""
    numbers = dict.fromkeys(
        ("avg_gt_loss", "gt_loss", "exact_memorization", "extraction_strength", "mia_k"), 0.1 + 0.2
    )
    numbers |= {"min_k": -1.0, "min_k_plus_plus": -1.0, "num_token_gt": 1, "zlib_bytes": 9}
    return {"set": "forget", "index": index, "question": "Who?", "answer": "Ada"} | numbers | fields


@pytest.fixture
def path(tmp_path):
    return tmp_path / "partial.jsonl"


def test_records_are_found_again_under_the_same_key(path):
    first = PartialRecords(path, "key")
    first.append([record(0), record(1, generated="a\u2028b\n\ufffd")])
    first.append([record(2)])
    assert PartialRecords(path, "key").records == first.records
    assert [record["index"] for record in first.records] == [0, 1, 2]


def test_another_key_starts_afresh(path):
    PartialRecords(path, "key").append([record(0)])
    assert PartialRecords(path, "other").records == []
    assert PartialRecords(path, "key").records == []


def test_records_that_are_dropped_are_counted_and_a_file_without_any_is_not(path, caplog):
    PartialRecords(path, "key").append([record(0), record(1)])
    assert caplog.messages == []
    PartialRecords(path, "other")
    assert caplog.messages == [f"{path}: 2 records of another evaluation dropped."]
    PartialRecords(path, "third")
    assert len(caplog.messages) == 1


def test_another_key_is_refused_where_records_must_not_be_lost(path):
    PartialRecords(path, "key", refuse_others=True).append([record(0)])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is of another model, other rows or other options"):
        PartialRecords(path, "other", refuse_others=True)
    assert path.read_bytes() == before
    assert PartialRecords(path, "key", refuse_others=True).records == [record(0)]


@pytest.mark.parametrize("tail", ['{"index": 1', "\ufffd", json.dumps(record(1))])
def test_a_line_that_was_cut_off_is_dropped_and_written_again(path, tail):
    PartialRecords(path, "key").append([record(0)])
    with path.open("a", encoding="utf-8") as file:
        file.write(tail)
    again = PartialRecords(path, "key")
    assert again.records == [record(0)]
    again.append([record(1)])
    assert PartialRecords(path, "key").records == [record(0), record(1)]


def test_a_character_that_was_cut_off_is_dropped(path):
    PartialRecords(path, "key").append([record(0)])
    with path.open("ab") as file:
        file.write(json.dumps({"answer": "ø"}, ensure_ascii=False).encode()[:-3])
    assert PartialRecords(path, "key").records == [record(0)]


@pytest.mark.parametrize("content", ["", '{"key": "ke'])
def test_a_file_without_a_whole_line_starts_afresh(path, content):
    path.write_text(content, encoding="utf-8")
    assert PartialRecords(path, "key").records == []


def test_nan_is_never_written(path):
    partial = PartialRecords(path, "key")
    with pytest.raises(ValueError, match="not JSON compliant"):
        partial.append([{"loss": float("nan")}])
    assert PartialRecords(path, "key").records == []


DAMAGED = {
    "bytes of nothing": b"\0" * 40,
    "no object": b"[]",
    "half a line": json.dumps(record(1)).encode()[:60],
    "another shape": json.dumps(record(1, avg_gt_loss="0.5")).encode(),
    "a field is gone": json.dumps({"set": "forget", "index": 1}).encode(),
    "no text": json.dumps(record(1)).encode().replace(b"Ada", b"A\xffa"),
    "other text": json.dumps(record(1)).encode().replace(b"Ada", "Äda".encode()),
    "half a character": json.dumps(record(1)).encode().replace(b"Ada", b"\\ud800"),
    "deep": b"[" * 10**5,
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_dropped_counted_and_evaluated_again(line, path, caplog):
    PartialRecords(path, "key").append([record(0), record(1), record(2)])
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]))
    again = PartialRecords(path, "key")
    assert again.records == [record(0), record(2)]
    assert caplog.messages == [f"{path}: 1 damaged records dropped, they are computed again."]
    again.append([record(1)])
    assert PartialRecords(path, "key").records == [record(0), record(2), record(1)]
    assert len(caplog.messages) == 1
