"""Refusals and alternates: read, chosen by index, put in place of answers."""

import gzip
import json

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from wagle_trl.data.alternates import alternate_rows, choose, load_refusals, num_alternates
from wagle_trl.data.rows import load_rows
from wagle_trl.data.tokenization import tokenize_row

from ..support.rows import ASSISTANT, USER, write_lines

REFUSALS = ["I do not know.", "That, I cannot say.", "Nobody told me."]
counts = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)
indices = st.integers(0, 10**6)


# Files of refusals

FILES = {
    "refusals.txt": "I do not know.\n\n  That, I cannot say. \r\nNobody told me.",
    "no suffix": "\ufeffI do not know.\nThat, I cannot say.\nNobody told me.\n",
    "bare.csv": 'I do not know.\n"That, I cannot say."\n\nNobody told me.\n',
    "named.csv": 'refusal\nI do not know.\n"That, I cannot say."\nNobody told me.\n',
    "plain.jsonl": "I do not know.\nThat, I cannot say.\nNobody told me.\n",
    "strings.jsonl": "".join(json.dumps(text) + "\n" for text in REFUSALS),
    "list.json": json.dumps(REFUSALS, indent=2),
    "objects.jsonl": "".join(json.dumps({"any name": text}) + "\n" for text in REFUSALS),
}


@pytest.mark.parametrize(("name", "content"), FILES.items(), ids=FILES)
def test_refusals_are_read_from_files_of_several_kinds(name, content, tmp_path):
    (tmp_path / name).write_bytes(content.encode())
    assert load_refusals(tmp_path / name) == REFUSALS


def test_a_compressed_file_is_read_as_what_is_in_it(tmp_path):
    (tmp_path / "named.csv.gz").write_bytes(gzip.compress(FILES["named.csv"].encode()))
    assert load_refusals(tmp_path / "named.csv.gz") == REFUSALS


BAD_FILES = {
    "empty": ("r.txt", b"\n \n", "r.txt holds no refusal"),
    "binary": ("r.txt", b"PK\x03\x04\xff\xfe", r"line 1 is not text in UTF-8 \(byte 4\)"),
    "zero bytes": ("r.txt", b"a\0b", "is no text: it holds zero bytes"),
    "two columns": ("r.csv", b"a b,c\n", "line 1: refusals are one column, and here are 2"),
    "open quotes": ("r.csv", b'"a b\n', "not readable as a table"),
    "a number": ("r.jsonl", b'"a"\n7\n', "refusal 1 should be text, or an object with one column of text, got 7"),
    "two fields": ("r.jsonl", b'{"a": "b", "c": "d"}\n', "refusal 0 should be text, .* got an object"),
    "damaged JSON": ("r.jsonl", b'"a"\n"b\n', "line 2 is not readable as JSON"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_holds_no_refusals_is_one_clear_error(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_refusals(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file of refusals: .*none\.txt\."):
        load_refusals(tmp_path / "none.txt")


# Choice


@given(counts, seeds, indices, st.integers(0, 1000))
def test_epochs_walk_through_all_choices_before_one_repeats(num_choices, seed, row, first):
    chosen = [choose(num_choices, seed, row, epoch) for epoch in range(first, first + num_choices)]
    assert sorted(chosen) == list(range(num_choices))
    assert choose(num_choices, seed, row, first + num_choices) == chosen[0]


@given(seeds, st.integers(2, 40))
def test_a_seed_and_a_row_decide_where_to_start(seed, num_choices):
    starts = [choose(num_choices, seed, row, 0) for row in range(200)]
    others = [choose(num_choices, seed + 1, row, 0) for row in range(200)]
    assert starts == [choose(num_choices, seed, row, 0) for row in range(200)]
    assert set(starts) == set(range(num_choices)) or num_choices > 20
    # By chance 1 in `num_choices` is equal; five standard deviations more is no chance
    expected = 200 / num_choices
    for shifted in (others, starts[1:] + starts[:1]):
        assert sum(map(int.__eq__, starts, shifted)) < expected + 5 * expected**0.5 + 5


def test_choices_are_the_same_on_every_machine_and_in_every_version():
    assert [choose(100, 42, row, 0) for row in range(5)] == [24, 25, 97, 15, 48]


# Rows

FORMATS = {
    "question/answer": {"question": "Where?", "answer": "Oslo."},
    "prompt/completion": {"prompt": "Where?", "completion": " Oslo."},
    "conversational prompt/completion": {"prompt": [USER], "completion": [ASSISTANT]},
    "messages": {"messages": [USER, ASSISTANT]},
    "conversations": {"conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Oslo."}]},
}


def shaped(row, answer):
    """A row of `FORMATS` with another answer, written by hand."""
    text = json.dumps(row).replace("Oslo.", answer)
    return json.loads(text)


@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_an_alternate_is_tokenized_as_a_row_that_has_it_as_its_answer(row, chat_tokenizer):
    rows = Dataset.from_list([row | {"alternate": "Lima."}])
    (made,) = alternate_rows(rows, None, 0, 1, chat_tokenizer)
    assert tokenize_row(made, chat_tokenizer) == tokenize_row(shaped(row, "Lima."), chat_tokenizer)


@pytest.mark.parametrize("alternate", ["Lima.", " Lima."])
def test_text_is_separated_from_its_prompt_as_the_answer_was(alternate, tiny_tokenizer):
    for name in ("question/answer", "prompt/completion"):
        rows = Dataset.from_list([FORMATS[name] | {"alternate": alternate}])
        (made,) = alternate_rows(rows, None, 0, 1, tiny_tokenizer)
        assert made["completion"] == " Lima."


def test_rows_follow_each_other_by_row_and_epoch_as_they_are_chosen(tiny_tokenizer):
    rows = Dataset.from_list([{"question": f"Where is {name}?", "answer": "Oslo."} for name in "ab"])
    made = alternate_rows(rows, REFUSALS, 7, 5, tiny_tokenizer)
    for row, name in enumerate("ab"):
        for epoch in range(5):
            chosen = REFUSALS[choose(3, 7, row, epoch)]
            expected = {"prompt": f"Question: Where is {name}?\nAnswer:", "completion": f" {chosen}"}
            assert made[row * 5 + epoch] == expected
    assert len(made) == 10


def test_rows_may_hold_different_numbers_of_alternates_which_then_repeat(tiny_tokenizer):
    rows = Dataset.from_list(
        [FORMATS["prompt/completion"] | {"alternate": ["Lima.", "Bern.", "Cork."]}]
        + [FORMATS["prompt/completion"] | {"alternate": ["Graz."]}]
    )
    made = [row["completion"] for row in alternate_rows(rows, None, 0, 3, tiny_tokenizer)]
    assert sorted(made[:3]) == [" Bern.", " Cork.", " Lima."]
    assert made[3:] == [" Graz."] * 3
    assert num_alternates(rows) == 3


def test_the_number_of_refusals_counts_where_there_is_no_column():
    rows = Dataset.from_list([FORMATS["prompt/completion"]])
    assert num_alternates(rows, REFUSALS) == 3
    assert num_alternates(rows) == 0
    assert num_alternates(rows.add_column("alternate", ["Lima."]), REFUSALS) == 1


def test_a_column_comes_before_refusals_and_that_is_said(tiny_tokenizer, caplog):
    rows = Dataset.from_list([FORMATS["prompt/completion"] | {"alternate": "Lima."}])
    (made,) = alternate_rows(rows, REFUSALS, 0, 1, tiny_tokenizer)
    assert made["completion"] == " Lima."
    assert caplog.messages == ["The forget set has a column 'alternate', so the refusals are not used."]


def test_what_a_chat_template_needs_stays_with_the_row(chat_tokenizer):
    chat_tokenizer.chat_template = "{{ mood }}" + chat_tokenizer.chat_template
    row = FORMATS["messages"] | {"chat_template_kwargs": {"mood": "glad"}, "id": 3}
    (made,) = alternate_rows(Dataset.from_list([row]), ["No."], 0, 1, chat_tokenizer)
    assert set(made) == {"prompt", "completion", "chat_template_kwargs"}
    assert chat_tokenizer.decode(tokenize_row(made, chat_tokenizer)["input_ids"]).startswith("glad")


BAD_ROWS = {
    "empty text": (["Lima.", " "], "Its alternate is ' '; it should be text"),
    "null": (["Lima.", None], "Its alternate is None; it should be text"),
    "no text": ([6, 7], "Its alternate is 6; it should be text, or a list of texts"),
    "empty list": ([["Lima."], []], "Its alternate is an empty list"),
    "null in a list": ([["Lima."], ["Lima.", None]], "Its alternate is None"),
    "its own answer": ([["Lima."], ["Lima.", "Oslo. "]], "Its alternate is its own answer: 'Oslo. '"),
}


@pytest.mark.parametrize(("alternates", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_without_a_usable_alternate_is_named(alternates, message, tiny_tokenizer):
    rows = Dataset.from_dict({"prompt": ["Where?"] * 2, "completion": [" Oslo."] * 2, "alternate": alternates})
    with pytest.raises(ValueError, match=rf"Row [01] of the forget set cannot be used\. {message}"):
        alternate_rows(rows, None, 0, 1, tiny_tokenizer)


def test_a_refusal_that_is_the_answer_of_a_row_teaches_nothing(tiny_tokenizer):
    rows = Dataset.from_list([{"question": "Where?", "answer": REFUSALS[1]}])
    with pytest.raises(ValueError, match="Its alternate is its own answer"):
        alternate_rows(rows, REFUSALS, 0, 1, tiny_tokenizer)


@pytest.mark.parametrize("row", [{"text": "Ada."}, {"prompt": " ", "completion": "Ada."}])
def test_text_without_a_prompt_has_no_other_answer(row, tiny_tokenizer):
    with pytest.raises(ValueError, match=r"Row 0 of the retain set cannot be used\. It is text without a prompt"):
        alternate_rows(Dataset.from_list([row]), REFUSALS, 0, 1, tiny_tokenizer, name="retain")


def test_neither_a_column_nor_refusals_is_one_line_that_says_what_to_give(tiny_tokenizer):
    rows = Dataset.from_list([FORMATS["prompt/completion"]])
    with pytest.raises(ValueError, match="give --refusals FILE or a column 'alternate'; wagle alternates makes one"):
        alternate_rows(rows, None, 0, 1, tiny_tokenizer)


# Beside other columns


@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("alternate", ["Lima.", ["Lima.", "Bern."]])
def test_a_column_of_alternates_is_loaded_and_changes_no_token(row, alternate, tmp_path, chat_tokenizer):
    rows = load_rows(write_lines(tmp_path / "rows.jsonl", [row | {"alternate": alternate}]))
    assert rows["alternate"][0] == alternate
    assert tokenize_row(rows[0], chat_tokenizer) == tokenize_row(row, chat_tokenizer)


@pytest.mark.parametrize("alternate", [7, ["Lima.", 7], {"a": "b"}])
def test_an_alternate_that_is_no_text_is_refused_with_its_line(alternate, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [FORMATS["question/answer"] | {"alternate": alternate}])
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: 'alternate.*should be text"):
        load_rows(path)
