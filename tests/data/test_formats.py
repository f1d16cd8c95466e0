"""Rows of any format to prompt and completion."""

import copy

import pytest
from datasets import Dataset

from wagle_trl.data.formats import row_format, split_prompt, to_prompt_completion, to_trl, with_messages

from ..support.rows import ASSISTANT, ROWS, USER


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
    with pytest.raises(ValueError, match=r"It has no|A conversation needs"):
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


# Conversations


def test_renamed_keys_roles_and_parts_of_text_become_messages():
    given = [
        {"from": "human", "value": "Where?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Os"}, {"type": "text", "text": "lo."}]},
    ]
    row = {"conversations": copy.deepcopy(given), "text": None}
    assert with_messages(row) == {"messages": [USER, ASSISTANT], "text": None}
    assert row["conversations"] == given  # nothing in it is changed


def test_a_message_that_calls_a_tool_has_empty_text_and_no_nulls():
    call = {"name": "find", "arguments": {"city": "Oslo", "country": None}}
    message = {"role": "assistant", "content": None, "tool_calls": [{"function": call}], "reasoning": None}
    (kept,) = with_messages({"messages": [message]})["messages"]
    called = {"function": {"name": "find", "arguments": {"city": "Oslo"}}}
    assert kept == {"role": "assistant", "content": "", "tool_calls": [called]}


def test_conversations_are_converted_for_trl(tiny_tokenizer):
    rows = Dataset.from_list(
        [{"conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Oslo."}]}]
    )
    assert to_trl(rows, tiny_tokenizer).to_list() == [{"messages": [USER, ASSISTANT]}]


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"messages": [USER, ASSISTANT, USER]},
            "last message is of the role 'user': the answer must be the assistant's",
        ),
        ({"conversations": [{"from": "gpt", "value": "Hi"}, {"from": "human", "value": "Hi"}]}, "of the role 'user'"),
        ({"prompt": [USER], "completion": [USER]}, "of the role 'user'"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "It has no answer"),
        ({"messages": [ASSISTANT]}, "A conversation needs a turn before the answer"),
        ({"messages": [USER, {"content": "Oslo."}]}, "Its messages has a message without a role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ASSISTANT]}, "has content that is no text"),
        ({"prompt": "Where?", "completion": 7}, "Its completion is 7, which is no text"),
        ({"prompt": None, "completion": "Oslo."}, "Its prompt is null"),
        ({"prompt": "Where?", "completion": [ASSISTANT]}, "Its completion is .* which is no text"),
        ({"prompt": [USER], "completion": "Oslo."}, "Prompt and completion must both be text, or both be messages"),
        ({"question": 7, "answer": "Oslo."}, "Its question is 7, which is no text"),
        ({"text": ["Oslo."]}, "Its text is .* which is no text"),
        ({"messages": "[]"}, "Its messages is '\\[\\]', which is no list of messages"),
        ({"prompt": [], "completion": [ASSISTANT]}, "Its prompt has no message"),
        (
            {"prompt": [USER], "completion": [ASSISTANT, USER, ASSISTANT]},
            "a message of the role 'user', which is no answer",
        ),
        ({"messages": [{"role": "user", "content": None}, ASSISTANT]}, "a message of the user without content"),
        ({"messages": [USER, {"role": "assistant", "content": 0}]}, "has content that is no text: 0"),
        ({"messages": [USER, ASSISTANT | {"tool_calls": [{"type": "function"}]}]}, "a tool call without the name"),
        ({"messages": [USER, ASSISTANT | {"tool_calls": ["find"]}]}, "a tool call without the name"),
    ],
)
def test_a_row_that_cannot_be_split_says_why(row, message, tiny_tokenizer):
    with pytest.raises(ValueError, match=message):
        split_prompt(row, tiny_tokenizer)


def test_the_columns_with_values_decide_the_format(tiny_tokenizer):
    row = {"prompt": None, "completion": None, "question": None, "answer": None, "text": "Oslo."}
    assert split_prompt(row, tiny_tokenizer) == {"prompt": "", "completion": "Oslo."}


def test_the_column_of_plain_text_may_have_another_name(tiny_tokenizer):
    assert split_prompt({"story": "Oslo."}, tiny_tokenizer, "story") == {"prompt": "", "completion": "Oslo."}
