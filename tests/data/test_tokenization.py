"""Rows to token ids and labels."""

import copy
from pathlib import Path

import pytest
import trl
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from wagle_trl.data.chat_template import pin_date
from wagle_trl.data.formats import split_prompt, to_trl
from wagle_trl.data.tokenization import (
    RowOptions,
    prompt_token_ids,
    tokenize_dataset,
    tokenize_row,
    uncut_tokens,
)

from ..support.rows import ASSISTANT, QUESTION, ROWS, SHAPES, USER
from .conftest import CHAT_TEMPLATE

# As in SFTTrainer


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


# Templates

MAY_BE_REFUSED = ("system", "tool call", "tool result")
TEMPLATES = sorted(Path(trl.__file__).with_name("chat_templates").glob("*.jinja"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_what_is_scored_begins_with_the_answers_own_text(path, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template, tokenizer.bos_token = path.read_text(encoding="utf-8"), "</s>"
    for name, row in SHAPES.items():
        try:
            tokens = tokenize_row(row, tokenizer)
        except ValueError as error:
            assert name in MAY_BE_REFUSED, f"{name}: {error}"
            assert str(error).startswith("The chat template")
            continue
        scored = tokenizer.decode([label for label in tokens["labels"] if label != -100])
        if name == "tool call":
            assert "find_town" in scored
        elif name.startswith("reasoning"):
            assert "Ada lives in Oslo." in scored
        else:
            assert scored.strip().startswith("Ada lives in Oslo."), name
        start = tokens["labels"].index(next(label for label in tokens["labels"] if label != -100))
        assert tokens["labels"] == [-100] * start + tokens["input_ids"][start:]  # and goes on to the end
        if "messages" in row or "prompt" in row:
            assert (QUESTION["content"] in scored) is False


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_rows_are_the_same_tokens_in_a_data_set(path, tiny_tokenizer):
    """`datasets` gives each row the columns, and each message the keys, of all others."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template, tokenizer.bos_token = path.read_text(encoding="utf-8"), "</s>"
    single = {}
    for name, row in SHAPES.items():
        if name not in (*MAY_BE_REFUSED, "conversations", "parts"):  # of other types than the columns of the others
            single[name] = tokenize_row(row, tokenizer)
    columns = dict.fromkeys(column for name in single for column in SHAPES[name])
    rows = {c: [SHAPES[name].get(c) for name in single] for c in columns if c not in ("prompt", "completion")}
    rows = Dataset.from_dict(rows).filter(lambda row: any(value is not None for value in row.values()))
    together = tokenize_dataset(rows, tokenizer, RowOptions(), "forget")
    expected = [tokens for name, tokens in single.items() if "prompt" not in SHAPES[name]]
    assert together.select_columns(["input_ids", "labels"]).to_list() == expected


EMPTY_THOUGHTS = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}</s>{% endfor %}"


def test_an_empty_think_block_is_not_scored_and_part_of_the_prompt(chat_tokenizer):
    chat_tokenizer.chat_template = EMPTY_THOUGHTS
    tokens = tokenize_row({"messages": [USER, ASSISTANT]}, chat_tokenizer)
    scored = [label for label in tokens["labels"] if label != -100]
    assert chat_tokenizer.decode(scored) == "Oslo.</s>"
    assert chat_tokenizer.decode(tokens["input_ids"][: -len(scored)]) == "<user>Where?</s><assistant><think></think>"


@pytest.mark.parametrize(
    "template, message",
    [
        (
            "{{ raise_exception('System role not supported') }}",
            "The chat template refuses it: System role not supported",
        ),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "does not hold its answer 'Oslo.'"),
        ("{% for m in messages %}{{ m.content | reverse }}{% endfor %}", "does not hold its answer 'Oslo.'"),
        (None, "It is a conversation, but the tokenizer has no chat template"),
    ],
)
def test_a_template_that_does_not_show_the_answer_is_refused(template, message, chat_tokenizer):
    chat_tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        tokenize_row({"messages": [USER, ASSISTANT]}, chat_tokenizer)


@pytest.mark.parametrize("answer", ["Write <s>text</s> in HTML.", "Oslo\u0327 & Bergen"])
def test_an_answer_may_hold_special_tokens_and_signs(answer, chat_tokenizer):
    tokens = tokenize_row({"messages": [USER, {"role": "assistant", "content": answer}]}, chat_tokenizer)
    assert chat_tokenizer.decode([label for label in tokens["labels"] if label != -100]) == f"{answer}</s>"


def test_a_template_may_change_capitals(chat_tokenizer):
    chat_tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    tokens = tokenize_row({"messages": [USER, ASSISTANT]}, chat_tokenizer)
    assert chat_tokenizer.decode([label for label in tokens["labels"] if label != -100]) == "OSLO."


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tools": "{broken"}, "Its tools is no list"),
        ({"chat_template_kwargs": "[1]"}, "Its chat_template_kwargs is no dict"),
    ],
)
def test_what_goes_to_the_template_is_checked(columns, message, chat_tokenizer):
    with pytest.raises(ValueError, match=message):
        tokenize_row({"messages": [USER, ASSISTANT]} | columns, chat_tokenizer)


def test_what_goes_to_the_template_may_be_json_or_empty(chat_tokenizer):
    plain = tokenize_row({"messages": [USER, ASSISTANT]}, chat_tokenizer)
    assert (
        tokenize_row({"messages": [USER, ASSISTANT], "tools": "", "chat_template_kwargs": "{}"}, chat_tokenizer)
        == plain
    )
    chat_tokenizer.chat_template = "{% if loud %}!{% endif %}" + CHAT_TEMPLATE
    loud = tokenize_row({"messages": [USER, ASSISTANT], "chat_template_kwargs": '{"loud": true}'}, chat_tokenizer)
    assert chat_tokenizer.decode(loud["input_ids"]).startswith("!")


# Options


def test_prompts_can_be_scored_too(chat_tokenizer):
    for row in (ROWS["prompt/completion"], ROWS["messages"]):
        tokens = tokenize_row(row, chat_tokenizer, RowOptions(completion_only_loss=False))
        assert tokens["labels"] == tokens["input_ids"] == tokenize_row(row, chat_tokenizer)["input_ids"]


def test_all_that_the_assistant_says_can_be_scored(chat_tokenizer):
    chat_tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}</s>{% endfor %}"
    )
    tokens = tokenize_row({"messages": [USER, ASSISTANT] * 2}, chat_tokenizer, RowOptions(assistant_only_loss=True))
    assert chat_tokenizer.decode([label for label in tokens["labels"] if label != -100]) == "Oslo." * 2


@pytest.mark.parametrize("mode, kept", [("keep_start", slice(4)), ("keep_end", slice(-4, None))])
def test_long_rows_are_cut(mode, kept, tiny_tokenizer):
    row, options = {"text": "Ada lives in Oslo."}, RowOptions(max_length=4, truncation_mode=mode)
    whole = uncut_tokens(row, tiny_tokenizer, options)
    assert whole == tokenize_row(row, tiny_tokenizer)
    assert tokenize_row(row, tiny_tokenizer, options) == {name: values[kept] for name, values in whole.items()}


def test_masks_of_tokenized_rows_become_labels(tiny_tokenizer):
    row = {"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "assistant_masks": [1, 1, 0]}
    assert tokenize_row(row, tiny_tokenizer)["labels"] == [-100, 6, -100]
    assert tokenize_row(row, tiny_tokenizer, RowOptions(completion_only_loss=False))["labels"] == [5, 6, -100]


def test_padding_of_tokenized_rows_is_left_out(tiny_tokenizer):
    row = {"input_ids": [0, 0, 5, 6], "attention_mask": [0, 0, 1, 1]}
    assert tokenize_row(row, tiny_tokenizer) == {"input_ids": [5, 6], "labels": [5, 6]}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"input_ids": [5, 6, 7], "labels": [-100, 6]}, "It has 3 input_ids and 2 labels"),
        ({"input_ids": [5, 6, 7], "completion_mask": [0, 1]}, "It has 3 input_ids and a mask of 2"),
        ({"input_ids": [5, 6], "labels": [-7, 6]}, "labels are not a token or -100"),
        ({"input_ids": [5, 6, 7], "labels": [-100, 7, -100]}, "labels are other tokens than its input_ids"),
        ({"input_ids": [5, 6], "labels": [-100, 999]}, "labels are other tokens than its input_ids"),
        ({"input_ids": [5.0, 6.0]}, "Its input_ids are no whole numbers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(row, message, tiny_tokenizer):
    with pytest.raises(ValueError, match=message):
        tokenize_row(row, tiny_tokenizer)


def test_a_tokenizer_without_end_of_sequence_is_refused(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="The tokenizer has no end-of-sequence token"):
        tokenize_row({"text": "Oslo."}, tokenizer)


def test_the_row_that_cannot_be_tokenized_is_named(tiny_tokenizer):
    rows = Dataset.from_dict({"prompt": ["Where?", None], "completion": ["Oslo.", "Oslo."]})
    with pytest.raises(ValueError, match=r"Row 1 of the retain set cannot be used\. Its prompt is null"):
        tokenize_dataset(rows, tiny_tokenizer, RowOptions(), "retain")


def test_rows_that_stream_are_tokenized(tiny_tokenizer):
    rows = Dataset.from_list([ROWS["text"]])
    (streamed,) = tokenize_dataset(rows.to_iterable_dataset(), tiny_tokenizer, RowOptions(), "eval")
    assert streamed["input_ids"] == tokenize_row(ROWS["text"], tiny_tokenizer)["input_ids"]


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
