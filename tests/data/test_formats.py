"""Rows to prompt and completion, and to tokens."""

import copy

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from wagle_trl.data.formats import row_format, split_prompt, to_prompt_completion, to_trl
from wagle_trl.data.tokenization import pin_date, prompt_token_ids, tokenize_row

from ..support.rows import ASSISTANT, ROWS, USER

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chat_tokenizer(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


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


@pytest.mark.parametrize("value", [None, "", " \n"])
@pytest.mark.parametrize("name", ["question", "answer"])
def test_a_row_without_question_or_answer_is_shown(name, value, tiny_tokenizer):
    row = {"question": "Where?", "answer": "Oslo."} | {name: value}
    with pytest.raises(ValueError, match=rf"It has no {name}: .*{name}.*; remove it or fill it in\."):
        to_prompt_completion(row, tiny_tokenizer)
    with pytest.raises(ValueError, match=f"It has no {name}"):
        to_trl(Dataset.from_list([row]), tiny_tokenizer)


@pytest.mark.parametrize(
    "row", [{"prompt": "Where?", "completion": None}, {"text": None}, {"messages": None}, {"messages": []}]
)
def test_a_row_without_answer_is_not_split(row, tiny_tokenizer):
    with pytest.raises(ValueError, match="It has no|A conversation needs"):
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
