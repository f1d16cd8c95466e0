import json

import pytest

from wagle_trl.evaluation.partial import PartialRecords


@pytest.fixture
def path(tmp_path):
    return tmp_path / "partial.jsonl"


def test_records_are_found_again_under_the_same_key(path):
    first = PartialRecords(path, "key")
    first.append([{"index": 0, "loss": 0.1 + 0.2}, {"index": 1, "text": "a\u2028b\n"}])
    first.append([{"index": 2}])
    assert PartialRecords(path, "key").records == first.records
    assert [record["index"] for record in first.records] == [0, 1, 2]


def test_another_key_starts_afresh(path):
    PartialRecords(path, "key").append([{"index": 0}])
    assert PartialRecords(path, "other").records == []
    assert PartialRecords(path, "key").records == []


def test_records_that_are_dropped_are_counted_and_a_file_without_any_is_not(path, caplog):
    PartialRecords(path, "key").append([{"index": 0}, {"index": 1}])
    assert caplog.messages == []
    PartialRecords(path, "other")
    assert caplog.messages == [f"{path}: 2 records of another evaluation dropped."]
    PartialRecords(path, "third")
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("tail", ['{"index": 1', "\ufffd", '{"index": 1}'])
def test_a_line_that_was_cut_off_is_dropped_and_written_again(path, tail):
    PartialRecords(path, "key").append([{"index": 0}])
    with path.open("a", encoding="utf-8") as file:
        file.write(tail)
    again = PartialRecords(path, "key")
    assert again.records == [{"index": 0}]
    again.append([{"index": 1}])
    assert PartialRecords(path, "key").records == [{"index": 0}, {"index": 1}]


def test_a_character_that_was_cut_off_is_dropped(path):
    PartialRecords(path, "key").append([{"index": 0}])
    with path.open("ab") as file:
        file.write(json.dumps({"answer": "ø"}, ensure_ascii=False).encode()[:-3])
    assert PartialRecords(path, "key").records == [{"index": 0}]


@pytest.mark.parametrize("content", ["", '{"key": "ke'])
def test_a_file_without_a_whole_line_starts_afresh(path, content):
    path.write_text(content, encoding="utf-8")
    assert PartialRecords(path, "key").records == []


def test_nan_is_never_written(path):
    partial = PartialRecords(path, "key")
    with pytest.raises(ValueError, match="not JSON compliant"):
        partial.append([{"loss": float("nan")}])
    assert PartialRecords(path, "key").records == []
