"""Alternates that a model invents: reproducible, resumable, distinct."""

import pytest

from wagle_trl.data.alternates import prompted
from wagle_trl.evaluation import alternates
from wagle_trl.evaluation.alternates import AlternateOptions, alternate_prompt, generate_alternates

from ..support.rows import ASSISTANT, USER

ROWS = [
    {"question": f"Where does {name} live?", "answer": f"{name} lives in Oslo."} for name in ("Ada", "Bo", "Cyrus")
]
OPTIONS = {"num_alternates": 3, "max_new_tokens": 5, "batch_size": 2}


@pytest.fixture
def generate(tiny_model, tiny_tokenizer, tmp_path):
    """`generate(name, rows=ROWS, model=None, **options)`, with the file `name` for what is found."""

    def generate(name, rows=ROWS, model=None, **options):
        options = AlternateOptions(**OPTIONS | options)
        return generate_alternates(
            model or tiny_model(), tiny_tokenizer, rows, options, tmp_path / name, progress=False
        )

    return generate


@pytest.fixture
def answering(monkeypatch):
    """`calls = answering(*texts)`: the model says these texts in turn; `calls` lists the seeds that were asked for."""

    def answer(*texts):
        calls = []

        def answered(*args, seeds, **options):
            start = len(calls)
            calls.extend(seeds)
            return [texts[min(start + i, len(texts) - 1)] for i in range(len(seeds))]

        monkeypatch.setattr(alternates, "generate_answers", answered)
        return calls

    return answer


# Prompts


def asked(row, tokenizer):
    return tokenizer.decode(alternate_prompt(prompted(row, tokenizer), tokenizer))


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Where?", "answer": "Oslo."},
        {"prompt": "Question: Where?\nAnswer:", "completion": " Oslo.\n"},
        {"messages": [USER, ASSISTANT]},
    ],
    ids=["question/answer", "prompt/completion", "messages"],
)
def test_without_a_chat_template_the_row_goes_on_with_another_answer(row, tiny_tokenizer):
    assert asked(row, tiny_tokenizer) == "Question: Where?\nAnswer: Oslo.\nA different answer:"


@pytest.mark.parametrize(
    "row",
    [{"question": "Where?", "answer": "Oslo."}, {"prompt": [USER], "completion": [ASSISTANT]}],
    ids=["question/answer", "conversational prompt/completion"],
)
def test_with_a_chat_template_the_user_asks_for_other_facts_in_the_same_style(row, tiny_tokenizer, monkeypatch):
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>{{ enable_thinking }}"
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    text = asked(row, tiny_tokenizer)
    assert text.startswith("<user>Below is a question with its answer. Write a different answer")
    assert text.endswith("\n\nQuestion: Where?\nAnswer: Oslo.<assistant>False")


# Sampling


def test_a_row_gets_as_many_different_alternates_as_asked_for(generate):
    found = generate("a")
    assert [len(set(texts)) for texts in found] == [3, 3, 3]
    assert all(text.strip() == text != "" for texts in found for text in texts)


def test_neither_batch_size_nor_the_rows_beside_it_change_what_a_row_gets(generate):
    whole = generate("a")
    assert generate("b", batch_size=16) == whole
    assert generate("c", rows=ROWS[:1]) == whole[:1]


def test_another_seed_gives_others(generate):
    assert generate("a") != generate("b", seed=1)


def test_a_repetition_the_answer_and_nothing_are_sampled_again(generate, answering):
    calls = answering("Bern.", "ada  lives in OSLO.", "bern.", "", "<think>Hm.</think> Cork.", "Graz.", "Lima.")
    assert generate("a", rows=ROWS[:1]) == [["Bern.", "Cork.", "Graz."]]
    assert calls == [(0, 0, repeat) for repeat in range(len(calls))] and len(calls) == 7 - 1


def test_after_a_few_tries_a_row_has_fewer(generate, answering):
    calls = answering("Bern.")
    assert generate("a", rows=ROWS[:1]) == [["Bern."]]
    assert len(calls) == 12


# Going on


def test_an_interrupted_generation_goes_on_with_the_missing_rows(generate, monkeypatch, tmp_path):
    whole, sample, calls = generate("whole"), alternates._sample, []

    def interrupted(model, tokenizer, rows, options):
        calls.append(list(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(model, tokenizer, rows, options)

    monkeypatch.setattr(alternates, "_sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate("a")
    assert generate("a", batch_size=16) == whole
    assert calls == [[2, 0], [1], [1]]
    assert generate("a") == whole and len(calls) == 3


@pytest.mark.parametrize("changes", [{"seed": 1}, {"temperature": 0.5}, {"rows": ROWS[:2]}, {"model": 1}], ids=str)
def test_a_file_of_other_options_rows_or_weights_is_refused_and_kept(changes, generate, tiny_model, tmp_path):
    generate("a")
    before = (tmp_path / "a").read_bytes()
    if "model" in changes:
        changes = {"model": tiny_model(seed=1)}
    with pytest.raises(ValueError, match="is of another model, other rows or other options; give the same ones"):
        generate("a", **changes)
    assert (tmp_path / "a").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value"),
    [("num_alternates", 0), ("temperature", 0.0), ("temperature", float("nan")), ("seed", -1), ("batch_size", 0)],
)
def test_an_impossible_option_is_named(option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        AlternateOptions(**{option: value})


def test_a_row_without_a_prompt_is_named(generate):
    with pytest.raises(ValueError, match=r"Row 1 of the forget set cannot be used\. It is text without a prompt"):
        generate("a", rows=[ROWS[0], {"text": "Ada."}])
