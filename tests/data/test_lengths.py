"""Rows longer than `max_length`."""

import pytest
from datasets import Dataset

from wagle_trl.data.formats import VERSIONS
from wagle_trl.data.lengths import AnswerTokens, fit_rows
from wagle_trl.data.tokenization import RowOptions, num_scored

SHORT = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
LONG = {"input_ids": list(range(5, 15)), "labels": [-100, -100, *range(7, 15)]}
TEXT = {"input_ids": list(range(5, 28)), "labels": list(range(5, 28))}


def fit(rows, max_length, long_rows, **options):
    return fit_rows(Dataset.from_list(rows), RowOptions(max_length=max_length, **options), "forget", long_rows)


@pytest.mark.parametrize("long_rows", ["refuse", "truncate", "split"])
@pytest.mark.parametrize("max_length", [None, 10])
def test_rows_that_fit_stay_as_they_are(long_rows, max_length):
    rows, counted = fit([SHORT, LONG], max_length, long_rows)
    assert rows.to_list() == [SHORT, LONG]
    assert counted == AnswerTokens(rows=2, rows_cut=0, given=10, scored=10)


@pytest.mark.parametrize("mode, kept, scored", [("keep_start", slice(6), 4), ("keep_end", slice(-6, None), 5)])
def test_what_is_cut_of_answers_is_counted(mode, kept, scored):
    """The first token of what is kept is not predicted."""
    rows, counted = fit([SHORT, LONG], 6, "truncate", truncation_mode=mode)
    assert rows.to_list() == [SHORT, {name: values[kept] for name, values in LONG.items()}]
    assert counted == AnswerTokens(rows=2, rows_cut=1, given=10, scored=2 + scored)
    lost = 8 - scored
    assert str(counted) == f"1 of 2 rows are cut, {lost} answer tokens ({lost / 10:.1%}) are not scored"


def test_an_answer_that_would_be_cut_is_refused_by_its_row():
    with pytest.raises(
        ValueError, match=r"Row 1 of the forget set is too long for max_length=6: 4 of its 8 answer tokens"
    ):
        fit([SHORT, LONG], 6, "refuse")


def test_a_prompt_may_be_cut():
    rows, counted = fit([LONG], 9, "refuse", truncation_mode="keep_end")
    assert len(rows[0]["input_ids"]) == 9 and counted.scored == counted.given == 8


@pytest.mark.parametrize("max_length", [2, 3, 7, 22])
def test_split_rows_score_every_token_once(max_length):
    rows, counted = fit([TEXT, SHORT], max_length, "split")
    *pieces, last = rows["labels"]
    assert [label for piece in pieces for label in piece[1:]] == TEXT["labels"][1:]
    assert all(len(piece) <= max_length for piece in pieces)
    assert rows["input_ids"][: len(pieces)] == pieces
    if max_length > 2:
        assert last == SHORT["labels"]
    assert counted.given == sum(map(num_scored, [TEXT["labels"], SHORT["labels"]]))


def test_rows_with_a_prompt_are_not_split():
    rows, counted = fit([LONG], 6, "split")
    assert len(rows) == 1 and counted.rows_cut == 1


def test_a_row_without_answer_is_named():
    with pytest.raises(ValueError, match="Row 1 of the forget set has no answer; remove it or give it one"):
        fit([SHORT, {"input_ids": [5, 6], "labels": [5, -100]}], None, "truncate")


def test_an_answer_that_is_cut_off_wholly_is_refused():
    with pytest.raises(ValueError, match="1 rows of the forget set have no answer token left within max_length=2"):
        fit([SHORT, LONG], 2, "truncate")


@pytest.mark.parametrize("long_rows", ["truncate", "split"])
def test_rows_of_another_version_of_the_package_are_not_reused(long_rows, monkeypatch):
    """`datasets` finds stored results by their fingerprints."""
    dataset = Dataset.from_list([SHORT, TEXT])

    def fingerprint():
        return fit_rows(dataset, RowOptions(max_length=10), "forget", long_rows)[0]._fingerprint

    before = fingerprint()
    assert fingerprint() == before
    monkeypatch.setitem(VERSIONS, "wagle-trl", "another")
    assert fingerprint() != before


def test_rows_without_a_scored_token_can_be_left_out():
    empty = {"input_ids": [5, 6], "labels": [5, -100]}
    options = RowOptions(max_length=2)
    rows, counted = fit_rows(Dataset.from_list([SHORT, empty, LONG]), options, "train", "truncate", drop_empty=True)
    assert rows.to_list() == [{name: values[:2] for name, values in SHORT.items()}]
    assert counted == AnswerTokens(rows=3, rows_cut=2, given=10, scored=1)
