import pytest

from wagle_trl.evaluation.retrained_model import read_retrained_records
from wagle_trl.evaluation.tofu import EvalOptions, write_records

from .conftest import RATIO, make_record

PERTURBED = {"forget": [{"perturbed_answer": ["no"]}]}
WITH_HOLDOUT = {"forget": [{}], "holdout": [{}]}


def read(tmp_path, records, sets):
    return read_retrained_records(write_records(records, tmp_path / "retrained.jsonl"), sets, EvalOptions())


def test_only_what_is_compared_is_read(tmp_path):
    records = [make_record(name, **RATIO) for name in ("forget", "retain", "holdout")]
    assert read(tmp_path, [*records, {"loss": 1.0}], PERTURBED) == [records[0], records[2]]


@pytest.mark.parametrize(
    ("records", "sets", "message"),
    [
        ([make_record("forget")], {"forget": [{}]}, "need forget rows, all of them with `perturbed_answer`, or"),
        ([make_record("holdout")], PERTURBED, "has no records of the set 'forget'"),
        ([make_record("forget")], PERTURBED, "1 of 1 records have no losses of perturbed answers"),
        ([make_record("forget")], WITH_HOLDOUT, "PrivLeak needs records of the set 'holdout'"),
        ([make_record("forget", -1.0), make_record("holdout", -2.0)], WITH_HOLDOUT, "PrivLeak is not defined"),
    ],
    ids=["rows", "sets", "ratios", "holdout", "auc of one"],
)
def test_records_that_allow_no_metric_are_refused(tmp_path, records, sets, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, records, sets)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        (({"mia_k": 0.2}, {"mia_k": 0.2}), "0.2"),
        (({"mia_k": 0.3}, {"mia_k": 0.2}), "0.2 and 0.3"),
    ],
)
def test_records_with_another_share_of_tokens_are_refused(tmp_path, fields, found):
    records = [make_record(name, **own) for name, own in zip(("forget", "holdout"), fields, strict=True)]
    expected = f"`min_k` with mia_k {found}, but this evaluation has mia_k 0.4."
    with pytest.raises(ValueError, match=expected):
        read(tmp_path, records, WITH_HOLDOUT)


@pytest.mark.parametrize(
    ("forget", "holdout", "message"),
    [
        (2, 1, "retrained.jsonl: The file has 2 records of the set 'forget', but 1 rows are to be evaluated"),
        (1, 3, "retrained.jsonl: The file has 3 records of the set 'holdout', but 1 rows are to be evaluated"),
    ],
)
def test_records_of_other_rows_are_refused(tmp_path, forget, holdout, message):
    records = forget * [make_record("forget", **RATIO)] + holdout * [make_record("holdout")]
    with pytest.raises(ValueError, match=message):
        read(tmp_path, records, PERTURBED | {"holdout": [{}]})


def test_holdout_records_do_not_matter_if_no_holdout_rows_are_evaluated(tmp_path):
    records = [make_record("forget", **RATIO), make_record("holdout"), make_record("holdout")]
    assert read(tmp_path, records, PERTURBED) == records
