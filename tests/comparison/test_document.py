import re
from itertools import pairwise

from wagle_trl.comparison.document import write_document
from wagle_trl.comparison.groups import group_runs
from wagle_trl.comparison.runs import load_runs

from .conftest import TRAINING


def test_the_document_shows_its_figures_and_tables(runs, tmp_path):
    files, tables = write_document(runs, tmp_path)
    assert [file.name for file in files] == [
        "report.md",
        *("trajectory.png", "trajectory.pdf", "trade_off.png", "trade_off.pdf", "relearning.png", "relearning.pdf"),
        *("masks.png", "masks.pdf"),
        "runs.csv",
    ]
    assert all(file.stat().st_size > 10_000 for file in files[1:9])
    text = files[0].read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Runs", "Forgetting", "Evaluation", "Attacks", "Masks"]
    assert re.findall(r"\]\((.*)\)", text) == [file.name for file in files if file.suffix == ".png"]
    assert all(table.to_markdown() in text for table in tables)
    assert len(tables) == 6


def test_tables_stand_between_blank_lines_as_markdown_wants_them(runs, tmp_path):
    lines = write_document(runs, tmp_path)[0][0].read_text(encoding="utf-8").splitlines()
    for line, after in pairwise(lines):
        if line.startswith("|") != after.startswith("|"):
            assert line == "" or after == ""


def test_what_there_is_nothing_of_is_left_out(make_run, tmp_path):
    files, tables = write_document(load_runs([make_run(training={"objective": "mask"})]), tmp_path)
    assert [file.name for file in files] == ["report.md", "runs.csv"]
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


def test_a_group_is_a_row_and_its_runs_are_told_at_the_end(seeds, make_run, tmp_path):
    dense = [*seeds("dense", mask=None), make_run("base", training=None, evaluation={"forget_prob": 0.99})]
    files, tables = write_document(group_runs(load_runs([*seeds("masked", has_mask=True), *dense])), tmp_path)
    assert [file.name for file in files][-2:] == ["runs.csv", "groups.csv"]
    assert [line[0] for line in tables[0].cells] == ["fisher_ratio (3 seeds)", "dense (3 seeds)"]
    text = files[0].read_text(encoding="utf-8")
    assert "0.550 ± 0.248" in text and "0.200 ± 0.248" in text
    assert "95 % t-interval over the seeds" in text
    (masked,) = [table for table in tables if table.title == "fisher_ratio (3 seeds)"]
    assert [line[:2] for line in masked.cells] == [[f"seed-{seed}/masked", str(seed)] for seed in (1, 2, 3)]


def test_predicted_memory_is_drawn_beside_the_measured(make_run, tmp_path):
    plan = {"attribution": {"weights": 5}, "training": {"weights": 5, "moments": 7}}
    run = make_run(training=TRAINING | {"cost": TRAINING["cost"] | {"memory_plan": plan}})
    files, _ = write_document(load_runs([run]), tmp_path)
    assert [file.name for file in files if file.stem == "memory"] == ["memory.png", "memory.pdf"]
    assert "![Memory](memory.png)" in files[0].read_text(encoding="utf-8")
