"""TOFU, cut into what to forget and what to keep."""

from pathlib import Path

import pytest

from wagle_trl.data import tofu
from wagle_trl.data.tofu import load_tofu, load_tofu_evaluation

from ..support.rows import write_lines

TOFU = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tofu"


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
