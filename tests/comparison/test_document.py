import re
from itertools import pairwise

from wagle_trl.comparison.document import write_document
from wagle_trl.comparison.runs import load_runs

from .conftest import TRAINING


def test_the_document_shows_its_figures_and_tables(runs, tmp_path):
    files, tables = write_document(runs, tmp_path)
    assert [file.name for file in files] == ["report.md", "trajectory.png", "relearning.png", "masks.png"]
    assert all(file.stat().st_size > 10_000 for file in files[1:])
    text = files[0].read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Runs", "Forgetting", "Evaluation", "Attacks", "Masks"]
    assert re.findall(r"\]\((.*)\)", text) == [file.name for file in files[1:]]
    assert all(table.to_markdown() in text for table in tables)
    assert len(tables) == 6


def test_tables_stand_between_blank_lines_as_markdown_wants_them(runs, tmp_path):
    lines = write_document(runs, tmp_path)[0][0].read_text(encoding="utf-8").splitlines()
    for line, after in pairwise(lines):
        if line.startswith("|") != after.startswith("|"):
            assert line == "" or after == ""


def test_what_there_is_nothing_of_is_left_out(make_run, tmp_path):
    files, tables = write_document(load_runs([make_run(training={"objective": "mask"})]), tmp_path)
    assert [file.name for file in files] == ["report.md"]
    assert len(tables) == 1
    text = files[0].read_text(encoding="utf-8")
    assert "## Runs" in text and "mask" in text
    assert text.count("#") == 3 and "![" not in text


def test_it_says_of_which_weights_the_numbers_are(make_run, tmp_path):
    history = TRAINING["log_history"] + [
        {"forget_probability": 0.4, "retain_probability": 0.9, "loaded_step": 5, "step": 10}
    ]
    earlier = [{"steps": 20, "log_history": TRAINING["log_history"][:1]}]
    training = TRAINING | {"steps": 10, "loaded_step": 5, "log_history": history, "earlier_training": earlier}
    files, tables = write_document(load_runs([make_run(training=training)]), tmp_path)
    text = files[0].read_text(encoding="utf-8")
    assert (
        "- run: It was trained in 2 calls of `train`; steps are counted over all of them. The saved weights are those "
        in text
    )
    assert "of step 25, the best of 30 steps." in text
    (kept,) = [table for table in tables if table.title.startswith("Of the saved weights")]
    assert kept.cells[0][:3] == ["run", "0.400", "0.900"]
