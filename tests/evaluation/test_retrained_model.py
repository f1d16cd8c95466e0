import pytest

from wagle_trl.evaluation.retrained_model import read_reference
from wagle_trl.evaluation.tofu import EvalOptions, write_records

from .conftest import RATIO, make_record

PERTURBED = {"forget": [{"perturbed_answer": ["no"]}]}
WITH_HOLDOUT = {"forget": [{}], "holdout": [{}]}


def read(tmp_path, records, sets):
    return read_reference(write_records(records, tmp_path / "reference.jsonl"), sets, EvalOptions())


def test_only_what_is_compared_is_read(tmp_path):
    records = [make_record(name, **RATIO) for name in ("forget", "retain", "holdout")]
    assert read(tmp_path, [*records, {"loss": 1.0}], PERTURBED) == [records[0], records[2]]


@pytest.mark.parametrize(
    ("records", "sets", "message"),
    [
        ([make_record("forget")], {"forget": [{}]}, "needs forget rows, all of them with `perturbed_answer`, or"),
        ([make_record("holdout")], PERTURBED, "has no records of the set 'forget'"),
        ([make_record("forget")], PERTURBED, "1 of 1 records have no losses of perturbed answers"),
        ([make_record("forget")], WITH_HOLDOUT, "PrivLeak needs records of the set 'holdout'"),
        ([make_record("forget", -1.0), make_record("holdout", -2.0)], WITH_HOLDOUT, "PrivLeak is not defined"),
    ],
    ids=["rows", "sets", "ratios", "holdout", "auc of one"],
)
def test_a_reference_that_brings_nothing_is_refused(tmp_path, records, sets, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, records, sets)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        (({"mia_k": 0.2}, {"mia_k": 0.2}), "0.2"),
        (({"mia_k": 0.3}, {"mia_k": 0.2}), "0.2 and 0.3"),
    ],
)
def test_a_reference_with_another_share_of_tokens_is_refused(tmp_path, fields, found):
    records = [make_record(name, **own) for name, own in zip(("forget", "holdout"), fields, strict=True)]
    expected = f"`min_k` is of {found} of the tokens, that of this evaluation of 0.4."
    with pytest.raises(ValueError, match=expected):
        read(tmp_path, records, WITH_HOLDOUT)


@pytest.mark.parametrize(
    ("forget", "holdout", "message"),
    [
        (2, 1, "reference.jsonl: It has 2 records of the set 'forget', where 1 rows are to be evaluated"),
        (1, 3, "reference.jsonl: It has 3 records of the set 'holdout', where 1 rows are to be evaluated"),
    ],
)
def test_a_reference_of_other_rows_is_refused(tmp_path, forget, holdout, message):
    records = forget * [make_record("forget", **RATIO)] + holdout * [make_record("holdout")]
    with pytest.raises(ValueError, match=message):
        read(tmp_path, records, PERTURBED | {"holdout": [{}]})


def test_the_holdout_rows_of_a_reference_do_not_matter_where_none_are_evaluated(tmp_path):
    records = [make_record("forget", **RATIO), make_record("holdout"), make_record("holdout")]
    assert read(tmp_path, records, PERTURBED) == records
