"""Rows from files and folders."""

import bz2
import gzip
import json

import pyarrow
import pytest
from datasets import Dataset, DatasetDict, Features, Value

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


# Tables and other files

QA = [
    {"question": "Who, 1?", "answer": 'A "B"\nC'},
    {"question": "Code", "answer": "0044"},
    {"question": "q", "answer": "NA"},
]


def write_table(path, delimiter=","):
    quoted = [[f'"{value}"' for value in (row["question"], row["answer"].replace('"', '""'))] for row in QA[:1]]
    plain = [[row["question"], row["answer"]] for row in QA[1:]]
    content = "\r\n".join(delimiter.join(line) for line in (["question", "answer"], *quoted, *plain)) + "\r\n\r\n"
    path.write_bytes(content.encode("utf-8-sig"))
    return path


def write_compressed(path, compress):
    return path.write_bytes(compress("".join(json.dumps(row) + "\n" for row in QA).encode())) and path


WRITERS = {
    "rows.csv": write_table,
    "ROWS.CSV": write_table,
    "rows.tsv": lambda path: write_table(path, "\t"),
    "rows.ndjson": lambda path: write_lines(path, QA),
    "rows.jsonl.gz": lambda path: write_compressed(path, gzip.compress),
    "rows.json.bz2": lambda path: write_compressed(path, bz2.compress),
    "rows.jsonl.zst": lambda path: write_compressed(path, lambda text: pyarrow.compress(text, "zstd", asbytes=True)),
    "rows[1].parquet": lambda path: Dataset.from_list(QA).to_parquet(path) and path,
}


@pytest.mark.parametrize("name", WRITERS)
def test_rows_come_back_from_files_of_every_kind_with_the_name_of_the_file(name, tmp_path):
    dataset = load_rows(WRITERS[name](tmp_path / name))
    assert dataset.to_list() == QA and dataset.info.dataset_name == name


@pytest.mark.parametrize("kind", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
def test_both_kinds_of_arrow_files_are_read(kind, tmp_path):
    rows = Dataset.from_list(QA, features=Features({"question": Value("large_string"), "answer": Value("string")}))
    with kind(str(tmp_path / "rows.arrow"), rows.data.table.schema) as writer:
        writer.write_table(rows.data.table)
    dataset = load_rows(tmp_path / "rows.arrow")
    assert dataset.to_list() == QA and dataset.features == rows.features


def test_every_line_of_a_text_is_a_row(tmp_path):
    (tmp_path / "rows.txt").write_text("one\u2028two\n\n three\r\n", newline="")
    assert load_rows(tmp_path / "rows.txt")["text"] == ["one\u2028two", " three"]


DAMAGED = {
    "bad.csv": (b'question,answer\na,b\n"c,d\n', r"bad\.csv, line 3 is not readable as a table"),
    "short.csv": (b"question,answer\na,b\n\nc\n", r"short\.csv, line 4: the row has not the 2 columns"),
    "long.csv": (b"question,answer\na,b,c\n", r"long\.csv, line 2: the row has not the 2 columns"),
    "twice.csv": (b"answer,answer\na,b\n", r"twice\.csv, line 1: two columns have one name"),
    "latin.csv": (b"question,answer\na,caf\xe9\n", r"latin\.csv, line 2 is not text in UTF-8"),
    "list.csv": (b"text,perturbed_answer\na,b\n", r"list\.csv, line 2: 'perturbed_answer' should be a list"),
    "empty.csv": (b"", r"The data set '.*empty\.csv' is empty"),
    "other.csv": (b"a;b\nc;d\n", r"line 1: the columns are separated by ';'"),
    "rows.jsonl.gz": (b"no gzip", r"rows\.jsonl\.gz cannot be decompressed"),
    "rows.parquet": (b"PAR1 no parquet", r"rows\.parquet is not readable as columns"),
    "rows.arrow": (b"ARROW1 no arrow", r"rows\.arrow is not readable as columns"),
    "rows.xlsx": (b"PK", r"The suffix of '.*rows\.xlsx' does not say .* expected one of \.jsonl, \.json, .*\.csv"),
    "rows": (b"", r"The suffix of '.*rows' does not say"),
    "rows.pkl": (b"", r"The suffix of '.*rows\.pkl' does not say"),
    "rows.parquet.gz": (b"", r"The suffix of '.*rows\.parquet\.gz' does not say"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_is_no_rows_is_refused_with_its_name_and_line(name, tmp_path):
    content, message = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_rows(tmp_path / name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.jsonl.gz", "sub/rows.CSV"])
def test_a_file_that_is_missing_is_never_looked_for_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"^No such data file: {name}\.$"):
        load_rows(name)


@pytest.mark.parametrize("name", ["rows.xlsx", "nobody/nothing", "./rows"])
def test_what_is_nowhere_is_said_to_be_neither_here_nor_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=rf"^No data at '{name}': there is no such file or folder, and the Hub"
    ):
        load_rows(name)


def test_damaged_files_of_a_folder_are_one_kind_of_error(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(ValueError, match=r"Cannot read the data set '.*rows'"):
        load_rows(tmp_path / "rows")
