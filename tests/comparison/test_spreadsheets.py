import csv

import pytest

from wagle_trl.comparison.groups import group_runs
from wagle_trl.comparison.runs import load_runs
from wagle_trl.comparison.spreadsheets import write_spreadsheets

from .conftest import TRAINING


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_run_and_every_group_is_a_row(seeds, make_run, tmp_path):
    lines = group_runs(load_runs([*seeds(), make_run("alone")]))
    runs, groups = map(read, write_spreadsheets(lines, tmp_path))
    assert [(row["run"], row["seed"]) for row in runs] == [
        *((f"seed-{seed}/npo", str(seed)) for seed in (1, 2, 3)),
        ("alone", ""),
    ]
    assert float(runs[1]["unseen_retain_at_0.1"]) == pytest.approx(0.55)
    (group,) = groups
    assert (group["seeds"], group["forget_prob_n"], group["learning_rate"]) == ("3", "3", "2e-05")
    assert float(group["forget_prob"]) == pytest.approx(0.2)
    assert float(group["forget_prob_ci95"]) == pytest.approx(0.2484, abs=1e-4)


def test_without_groups_there_is_one_file(make_run, tmp_path):
    assert [file.name for file in write_spreadsheets(load_runs([make_run()]), tmp_path)] == ["runs.csv"]


@pytest.mark.parametrize("sign", ["=", "\t=", "\uff1d"])  # the last in full width
def test_text_of_a_file_is_no_formula_of_a_spreadsheet(sign, make_run, tmp_path):
    runs = load_runs([make_run(training=TRAINING | {"objective": f'{sign}HYPERLINK("x")\n', "base_model": "a,b"})])
    (row,) = read(write_spreadsheets(runs, tmp_path)[0])
    assert (row["objective"], row["base_model"]) == (f'\'{sign.strip()}HYPERLINK("x")', "a,b")
