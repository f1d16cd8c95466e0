import copy
import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from trl import SFTConfig, SFTTrainer

from wagle_trl.data import tofu
from wagle_trl.data.formats import (
    pin_date,
    prompt_token_ids,
    row_format,
    split_prompt,
    to_prompt_completion,
    to_trl,
    tokenize_row,
)
from wagle_trl.data.rows import load_rows, read_jsonl
from wagle_trl.data.tofu import load_tofu, load_tofu_evaluation

TOFU = Path(__file__).resolve().parents[2] / "shared" / "data" / "tofu"
USER, ASSISTANT = {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Oslo."}
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ROWS = {
    "prompt/completion": {"prompt": "Where?", "completion": " Oslo."},
    "question/answer": {"question": "Where?", "answer": "Oslo."},
    "messages": {"messages": [USER, ASSISTANT]},
    "text": {"text": "Ada lives in Oslo."},
    "input_ids/labels": {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    "input_ids": {"input_ids": [5, 6, 7]},
    "conversational prompt/completion": {"prompt": [USER], "completion": [ASSISTANT]},
}


def write_lines(path, rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def chat_tokenizer(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


# Loading


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
    with pytest.raises(ValueError, match=r"rows\.jsonl: the columns of its rows make no data set"):
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


# TOFU


@pytest.fixture
def small_tofu(tmp_path, monkeypatch):
    """A TOFU of ten rows, the last four of them to forget at most."""
    monkeypatch.setattr(tofu, "TOFU_FORGET_ROWS", {"forget01": 1, "forget05": 2, "forget10": 4})
    write_lines(tmp_path / "full.jsonl", [{"question": f"q{i}", "answer": f"a{i}"} for i in range(10)])
    write_lines(tmp_path / "forget10_perturbed.jsonl", [{"question": f"q{i}"} for i in range(6, 10)])
    write_lines(tmp_path / "holdout10.jsonl", [{"question": "holdout"}] * 2)
    for name in ("retain", "real_authors", "world_facts"):
        write_lines(tmp_path / f"{name}_perturbed.jsonl", [{"question": name}] * 3)
    return tmp_path


@pytest.mark.parametrize("forget, count", [("forget01", 1), ("forget05", 2), ("forget10", 4)])
def test_tofu_is_cut_into_the_last_rows_and_the_rest(forget, count, small_tofu):
    forget_rows, retain_rows = load_tofu(forget, small_tofu)
    assert forget_rows["question"] == [f"q{i}" for i in range(10 - count, 10)]
    assert retain_rows["question"] == [f"q{i}" for i in range(10 - count)]
    sets = load_tofu_evaluation(forget, small_tofu)
    assert [row["question"] for row in sets["forget"]] == forget_rows["question"]
    assert {name: len(rows) for name, rows in sets.items()} == {
        "forget": count,
        "retain": 3,
        "real_authors": 3,
        "world_facts": 3,
        "holdout": 2,
    }


@pytest.mark.parametrize("folder", [None, "tofu"])
@pytest.mark.parametrize("loader", [load_tofu, load_tofu_evaluation])
def test_an_unknown_tofu_split_is_refused(loader, folder):
    with pytest.raises(
        ValueError, match="Unknown TOFU split 'forget20'; expected one of forget01, forget05, forget10"
    ):
        loader("forget20", folder)


@pytest.mark.parametrize("loader", [load_tofu, load_tofu_evaluation])
def test_a_folder_without_tofu_is_named(loader, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such data file: .*jsonl"):
        loader("forget10", tmp_path)


@pytest.mark.skipif(not TOFU.is_dir(), reason=f"needs the TOFU files in {TOFU}")
@pytest.mark.parametrize("forget, count", [("forget01", 40), ("forget05", 200), ("forget10", 400)])
def test_the_real_tofu_has_the_published_sizes(forget, count):
    forget_rows, retain_rows = load_tofu(forget, TOFU)
    assert (len(forget_rows), len(retain_rows)) == (count, 4000 - count)
    sets = load_tofu_evaluation(forget, TOFU)
    assert {name: len(rows) for name, rows in sets.items()} == {
        "forget": count,
        "retain": 400,
        "real_authors": 100,
        "world_facts": 117,
        "holdout": 400,
    }
    assert [row["question"] for row in sets["forget"]] == forget_rows["question"]
    assert all(len(row["perturbed_answer"]) == 5 for row in sets["forget"])


# Formats


def test_labels_are_optional_and_content_columns_found_among_others():
    assert row_format(["id", "input_ids"], "x") == ("input_ids",)
    assert row_format(["answer", "id", "question"], "x") == ("question", "answer")
    with pytest.raises(ValueError, match="'x' has columns question, id"):
        row_format(["question", "id"], "x")


def test_question_and_answer_become_plain_text_without_a_chat_template(tiny_tokenizer):
    row = to_prompt_completion({"question": "Where?", "answer": "Oslo."}, tiny_tokenizer)
    assert row == {"prompt": "Question: Where?\nAnswer:", "completion": " Oslo."}


def test_question_and_answer_become_messages_with_a_chat_template(chat_tokenizer):
    row = to_prompt_completion({"question": "Where?", "answer": "Oslo."}, chat_tokenizer)
    assert row == {"prompt": [USER], "completion": [ASSISTANT]}


@pytest.mark.parametrize("value", [None, "", " \n", 7])
@pytest.mark.parametrize("name", ["question", "answer"])
def test_a_row_without_question_or_answer_is_shown(name, value, tiny_tokenizer):
    row = {"question": "Where?", "answer": "Oslo."} | {name: value}
    with pytest.raises(ValueError, match=rf"A row has no {name}: .*{name}.*; remove it or fill it in\."):
        to_prompt_completion(row, tiny_tokenizer)
    with pytest.raises(ValueError, match=f"A row has no {name}"):
        to_trl(Dataset.from_list([row]), tiny_tokenizer)


@pytest.mark.parametrize(
    "row", [{"prompt": "Where?", "completion": None}, {"text": None}, {"messages": None}, {"messages": []}]
)
def test_a_row_without_answer_is_not_split(row, tiny_tokenizer):
    with pytest.raises(ValueError, match="A row has no answer"):
        split_prompt(row, tiny_tokenizer)


def test_only_questions_and_answers_are_converted_for_trl(tiny_tokenizer):
    rows = Dataset.from_list([{"question": "Where?", "answer": "Oslo.", "id": 3}])
    assert to_trl(rows, tiny_tokenizer).to_list() == [{"prompt": "Question: Where?\nAnswer:", "completion": " Oslo."}]
    for name in ("prompt/completion", "messages", "text", "input_ids/labels"):
        rows = Dataset.from_list([ROWS[name]])
        assert to_trl(rows, tiny_tokenizer) is rows


@pytest.mark.parametrize(
    "row, prompt, completion",
    [
        (ROWS["text"], "", "Ada lives in Oslo."),
        (ROWS["prompt/completion"], "Where?", " Oslo."),
        (ROWS["question/answer"], "Question: Where?\nAnswer:", " Oslo."),
        ({"messages": [USER, ASSISTANT, USER, ASSISTANT]}, [USER, ASSISTANT, USER], [ASSISTANT]),
        ({"conversations": [{"from": "user", "value": "Where?"}, ASSISTANT]}, [USER], [ASSISTANT]),
    ],
    ids=["text", "prompt/completion", "question/answer", "messages", "conversations"],
)
def test_any_text_row_splits_into_prompt_and_completion(row, prompt, completion, tiny_tokenizer):
    assert split_prompt(copy.deepcopy(row), tiny_tokenizer) == {"prompt": prompt, "completion": completion}


def test_a_tokenized_row_has_no_text_to_split(tiny_tokenizer):
    with pytest.raises(ValueError, match="A tokenized row has no text to split"):
        split_prompt(ROWS["input_ids/labels"], tiny_tokenizer)


def prepared_by_trl(rows, model, tokenizer, tmp_path) -> list[dict]:
    args = SFTConfig(
        output_dir=str(tmp_path), max_length=None, bf16=False, gradient_checkpointing=False, report_to="none"
    )
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    return trainer.train_dataset.select_columns(["input_ids", "labels"]).to_list()


SAME = {
    "prompt/completion": {"prompt": "Where does Ada live?", "completion": " Ada lives in Oslo."},
    "prompt/completion that merges tokens": {"prompt": "Where does Ada li", "completion": "ves in Oslo."},
    "completion with end of sequence": {"prompt": "Where?", "completion": " Oslo.</s>"},
    "empty prompt": {"prompt": "", "completion": "Ada lives in Oslo."},
    "text": {"text": "Ada lives in Oslo."},
    "text with end of sequence": {"text": "Ada lives in Oslo.</s>"},
    "conversational prompt/completion": {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]},
    "input_ids/labels": ROWS["input_ids/labels"],
    "input_ids": ROWS["input_ids"],
}


@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
def test_tokenize_row_gives_what_sft_trainer_trains_on(row, tiny_model, chat_tokenizer, tmp_path):
    expected = prepared_by_trl([row], tiny_model(), chat_tokenizer, tmp_path)
    assert [tokenize_row(row, chat_tokenizer)] == expected


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE], ids=["plain", "chat"])
def test_tokenize_row_agrees_on_questions_and_answers(template, tiny_model, chat_tokenizer, tmp_path):
    chat_tokenizer.chat_template = template
    rows = [{"question": "Where does Ada live?", "answer": "Oslo."}]
    trl_rows = to_trl(Dataset.from_list(rows), chat_tokenizer).to_list()
    expected = prepared_by_trl(trl_rows, tiny_model(), chat_tokenizer, tmp_path)
    assert [tokenize_row(row, chat_tokenizer) for row in rows] == expected


def test_tokenize_row_scores_the_last_message_where_sft_trainer_trains_on_all(tiny_model, chat_tokenizer, tmp_path):
    row = {"messages": [USER, ASSISTANT, USER, ASSISTANT]}
    (expected,) = prepared_by_trl([row], tiny_model(), chat_tokenizer, tmp_path)
    tokenized = tokenize_row(row, chat_tokenizer)
    assert tokenized["input_ids"] == expected["input_ids"] == expected["labels"]
    answer = [label for label in tokenized["labels"] if label != -100]
    assert chat_tokenizer.decode(answer) == "Oslo.</s>"
    assert tokenized["input_ids"][-len(answer) :] == answer


def test_labels_that_only_other_rows_have_are_the_tokens_themselves(tiny_tokenizer):
    row = {"input_ids": [5, 6], "labels": None, "text": None}
    assert tokenize_row(row, tiny_tokenizer) == {"input_ids": [5, 6], "labels": [5, 6]}


def test_prompt_tokens_are_a_prefix_of_the_row(chat_tokenizer):
    for name in ("prompt/completion", "question/answer", "messages", "conversational prompt/completion"):
        prompt = prompt_token_ids(split_prompt(copy.deepcopy(ROWS[name]), chat_tokenizer), chat_tokenizer)
        row = tokenize_row(copy.deepcopy(ROWS[name]), chat_tokenizer)
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"][: len(prompt)] == [-100] * len(prompt)
        assert row["labels"][len(prompt) :] == row["input_ids"][len(prompt) :]


# Dates

DATED = "{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE


def test_a_template_without_a_date_stays_as_it_is():
    assert pin_date(None) is None
    assert pin_date(CHAT_TEMPLATE) is CHAT_TEMPLATE


def test_a_dated_template_renders_a_fixed_date(chat_tokenizer):
    chat_tokenizer.chat_template = DATED
    today = chat_tokenizer.apply_chat_template([USER], tokenize=False)
    pinned = chat_tokenizer.apply_chat_template([USER], tokenize=False, chat_template=pin_date(DATED))
    assert pinned == "26 Jul 2024" + today[len("26 Jul 2024") :]
    assert not today.startswith("26 Jul 2024")


def test_pinning_twice_is_pinning_once():
    assert pin_date(pin_date(DATED)) == pin_date(DATED)


def test_a_template_that_asks_whether_there_is_a_clock_renders_the_fixed_date(chat_tokenizer):
    template = (
        "{%- if strftime_now is defined %}{%- set date = strftime_now('%d %b %Y') %}{%- else %}{%- set date = 'none' %}"
        "{%- endif %}{{- date }}" + CHAT_TEMPLATE
    )
    rendered = chat_tokenizer.apply_chat_template([USER], tokenize=False, chat_template=pin_date(template))
    assert rendered == "26 Jul 2024<user>Where?</s>"


def test_tokenize_row_uses_the_fixed_date(chat_tokenizer):
    chat_tokenizer.chat_template = DATED
    row = tokenize_row({"prompt": [USER], "completion": [ASSISTANT]}, chat_tokenizer)
    assert chat_tokenizer.decode(row["input_ids"]).startswith("26 Jul 2024<user>")
