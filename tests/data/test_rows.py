"""Rows from files and folders."""

import json

import pytest
from datasets import Dataset, DatasetDict

from wagle_trl.data.rows import load_rows, read_jsonl

from ..support.rows import ROWS, write_lines


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_row_format_loads_from_json_lines(row, tmp_path):
    assert load_rows(write_lines(tmp_path / "rows.jsonl", [row, row])).to_list() == [row, row]


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_row_format_loads_from_a_json_list(row, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("\n " + json.dumps([row, row], indent=2))
    assert load_rows(path).to_list() == [row, row]


def test_a_saved_data_set_loads_from_its_folder(tmp_path):
    rows = [ROWS["text"]] * 3
    Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    assert load_rows(tmp_path / "one").to_list() == rows
    splits = {"train": Dataset.from_list(rows), "held_out": Dataset.from_list(rows[:1])}
    DatasetDict(splits).save_to_disk(tmp_path / "splits")
    assert len(load_rows(tmp_path / "splits")) == 3
    assert len(load_rows(str(tmp_path / "splits"), split="held_out")) == 1
    with pytest.raises(ValueError, match=r"splits' has no split 'test'; it has train, held_out\."):
        load_rows(tmp_path / "splits", split="test")


def test_a_folder_of_data_files_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    write_lines(tmp_path / "rows" / "train.jsonl", [ROWS["question/answer"]] * 2)
    write_lines(tmp_path / "rows" / "test.jsonl", [ROWS["question/answer"]])
    assert load_rows(tmp_path / "rows").to_list() == [ROWS["question/answer"]] * 2
    assert len(load_rows(tmp_path / "rows", split="test")) == 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such data file: .*nowhere\.jsonl"):
        load_rows(tmp_path / "nowhere.jsonl")


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": \n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3 is not readable as JSON"):
        load_rows(path)


def test_a_broken_json_list_is_named(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "a"}')
    with pytest.raises(ValueError, match=r"rows\.json, line 1 is not readable as JSON"):
        load_rows(path)


@pytest.mark.parametrize(
    "content, place",
    [
        ('{"text": "a"}\n[1, 2]\n', ", line 2: the content"),
        ('{"text": "a"}\n\n7\n', ", line 3: the content"),
        ('[{"text": "a"}, [1]]', r": '\[1\]'"),
    ],
)
def test_a_row_that_is_not_an_object_is_named(content, place, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"rows\.jsonl{place} should be an object, got "):
        load_rows(path)


def test_columns_that_the_first_row_lacks_are_kept(tmp_path):
    rows = [{"question": "q", "answer": "a"}, {"question": "q", "answer": "a", "perturbed_answer": ["b", "c"]}]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    assert load_rows(path).to_list() == [rows[0] | {"perturbed_answer": None}, rows[1]]


@pytest.mark.parametrize("line, answers", [(2, ("a", 1)), (1, (1, "a")), (2, ("a", ["b"]))])
def test_an_answer_that_is_no_text_is_named(line, answers, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"question": "q", "answer": answer} for answer in answers])
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line {line}: 'answer' should be text, got "):
        load_rows(path)


BAD_ROWS = {
    "prompt of a number": ({"prompt": 3, "completion": "a"}, "'prompt' should be text or a list, got 3"),
    "turn of text": ({"prompt": "a", "completion": ["b"]}, r"'completion\[0\]' should be an object"),
    "turn of a number": ({"messages": [{"role": "user", "content": 3}]}, r"'messages\[0\].content' should be text"),
    "conversation of text": ({"messages": "hello"}, "'messages' should be a list"),
    "tokens of text": ({"input_ids": [1, "2"]}, r"'input_ids\[1\]' should be a whole number"),
    "one wrong answer": ({"text": "a", "perturbed_answer": "b"}, "'perturbed_answer' should be a list"),
    "half a character": ('{"text": "\\ud83d"}', "half a character"),
    "endless number": ('{"text": "a", "id": ' + "9" * 5000 + "}", "a number has 5,000 digits"),
    "deep": ('{"text": "a", "id": ' + "[" * 500 + "]" * 500 + "}", "it nests too deep"),
}


@pytest.mark.parametrize("row, message", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_of_another_shape_is_refused_with_its_line_and_field(row, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + (row if isinstance(row, str) else json.dumps(row)))
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2.*{message}"):
        load_rows(path)


@pytest.mark.parametrize("values", [("a", 1), ({"a": 1}, [1]), (2**70, 2**70)], ids=repr)
def test_a_column_that_no_data_set_holds_is_refused(values, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"text": "a", "id": value} for value in values])
    with pytest.raises(ValueError, match=r"rows\.jsonl: its rows do not form a data set"):
        load_rows(path)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n', encoding="utf-8-sig")
    assert load_rows(path).to_list() == [{"text": "a"}]


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_an_empty_file_is_refused(content, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"The data set '.*rows\.jsonl' is empty"):
        load_rows(path)


def test_unknown_columns_are_refused_and_the_known_ones_listed(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"query": "a", "reply": "b"}])
    with pytest.raises(ValueError, match=r"has columns query, reply; expected .*prompt/completion, question/answer"):
        load_rows(path)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_separators_inside_strings_do_not_end_a_line(separator, tmp_path):
    rows = [{"text": f"one{separator}two"}, {"text": "three"}]
    # JSON escapes control characters itself; the others may stand as they are
    path = write_lines(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(path) == rows


def test_windows_line_ends_and_a_missing_last_one_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\r\n{"text": "b"}')
    assert read_jsonl(path) == [{"text": "a"}, {"text": "b"}]
