import io

import pytest
from rich.console import Console

from wagle_trl.comparison.runs import load_runs
from wagle_trl.comparison.tables import (
    Column,
    TextTable,
    attack_tables,
    evaluation_tables,
    kept_tables,
    metric_columns,
    setup_table,
)

from ..support.fuzzing import check_markdown, check_shown
from .conftest import EVALUATION, TRAINING


def cells(table):
    """Label -> heading -> text."""
    headings = [column.heading for column in table.columns]
    return {line[0]: dict(zip(headings, line[1:], strict=True)) for line in table.cells}


def test_the_setup_is_told_run_by_run_with_the_end_of_long_paths(runs):
    table = cells(setup_table(runs))
    assert table["masked"] == {
        "objective": "NPO",
        "base model": "my/base",
        "mask": "fisher_ratio",
        "density": "0.05",
        "learning rate": "2e-05",
        "steps": "10",
        "peak of attribution (GB)": "1.23",
        "peak of training (GB)": "2.50",
    }
    assert table["dense"]["mask"] == table["dense"]["density"] == ""


def test_what_was_kept_is_told_at_the_end_and_at_each_level(runs):
    (table,) = kept_tables(runs)
    masked = cells(table)["masked"]
    assert (masked["forget, saved"], masked["retain at 0.3"], masked["unseen retain at 0.3"]) == (
        "0.100",
        "0.850",
        "0.650",
    )
    assert masked["step at 0.3"] == "7.5"
    assert cells(table)["dense"]["retain at 0.3"] == ""
    assert "base" not in cells(table)  # a model that was only evaluated


def test_an_evaluation_has_a_table_for_each_metric_with_a_column_for_each_set(runs):
    tables = {table.title: cells(table) for table in evaluation_tables(runs)}
    assert list(tables) == ["Overall", "Answer probability", "ROUGE-L recall"]
    assert tables["Overall"]["masked"] == {
        "model utility": "0.600",
        "forget quality (p)": "1.23e-12",
        "PrivLeak (%)": "-45.7",
        "KL(base ‖ model): unseen retain (nats)": "0.0123",
        "weights changed": "4.01%",
    }
    assert tables["Answer probability"] == {
        "masked": {"forget": "0.123", "retain": "0.900"},
        "base": {"forget": "0.990", "retain": "0.980"},
    }
    assert tables["ROUGE-L recall"] == {"masked": {"forget": "0.250"}}


def test_a_metric_of_a_later_version_is_shown_under_its_name(make_run):
    runs = load_runs([make_run(evaluation={"new_metric": 123.456})])
    assert cells(evaluation_tables(runs)[0]) == {"run": {"new metric": "123"}}


def test_attacks_are_told_beside_the_run_without_them(runs):
    (table,) = attack_tables(runs)
    assert [column.heading for column in table.columns] == ["attack", "forget prob.", "retain prob."]
    assert table.cells == [
        ["masked", "none", "0.123", "0.900"],
        ["masked", "relearn", "0.510", ""],
        ["masked", "int8 (nearest)", "0.140", "0.870"],
    ]


def test_an_attack_stands_beside_the_same_of_the_other_runs(make_run):
    both = load_runs([make_run("a", evaluation=EVALUATION), make_run("b", evaluation=EVALUATION)])
    (table,) = attack_tables(both)
    assert [line[:2] for line in table.cells][:4] == [["a", "none"], ["b", "none"], ["a", "relearn"], ["b", "relearn"]]


def test_two_kinds_of_rounding_have_two_names(make_run):
    other = EVALUATION["attacks"]["quantize_int8"] | {"rounding": "bitsandbytes"}
    evaluations = {"cpu": EVALUATION, "gpu": EVALUATION | {"attacks": {"quantize_int8": other}}}
    (table,) = attack_tables(load_runs([make_run(name, evaluation=content) for name, content in evaluations.items()]))
    assert [line[:2] for line in table.cells][-2:] == [["cpu", "int8 (nearest)"], ["gpu", "int8 (bitsandbytes)"]]


@pytest.mark.parametrize("tables_of", [kept_tables, evaluation_tables, attack_tables])
def test_there_is_no_table_without_numbers(tables_of, make_run):
    assert tables_of(load_runs([make_run(training={"objective": "mask"})])) == []


def test_markdown_is_padded_and_sets_numbers_to_the_right():
    lines = [("a|b", {"score": "snip", "p": 0.5}), ("long label", {"score": "wagle"})]
    table = TextTable.of("T", lines, [Column("score", "mask", str, right=False), Column("p", "p"), Column("q", "q")])
    assert table.to_markdown().splitlines() == [
        "| run        | mask  |     p |",
        "| ---------- | ----- | ----: |",
        "| a\\|b       | snip  | 0.500 |",
        "| long label | wagle |       |",
    ]


def test_the_terminal_shows_the_same_cells(runs):
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(setup_table(runs).to_rich())
    text = console.export_text()
    assert all(cell in text for line in setup_table(runs).cells for cell in line)


def test_in_the_terminal_many_columns_become_lines():
    columns = [Column(f"p{i}", f"number {i} of many") for i in range(20)]
    table = TextTable.of("T", [("run-a", {c.key: 0.5 for c in columns}), ("run-b", {"p0": 0.25})], columns)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table.to_rich())
    text = console.export_text()
    assert all(word in text for word in ("run-a", "run-b", "0.250", *(column.heading for column in columns)))


def test_headings_of_metrics_say_all_and_those_of_sets_come_first():
    columns = metric_columns(["model_utility", "retain_rougeL_recall", "forget_prob", "kl_to_base_retain"])
    assert [(column.key, column.heading) for column in columns] == [
        ("forget_prob", "Answer probability: forget"),
        ("retain_rougeL_recall", "ROUGE-L recall: retain"),
        ("model_utility", "model utility"),
        ("kl_to_base_retain", "KL(base ‖ model): retain (nats)"),
    ]


HOSTILE = "[/x]|`*a*` <b> $x$\n# \x1b[2J\u202e"


def test_text_of_files_means_nothing_to_markdown_or_the_terminal(make_run):
    training = TRAINING | {"objective": HOSTILE, "base_model": HOSTILE}
    evaluation = EVALUATION | {f"{HOSTILE}_prob": 0.5, "attacks": {HOSTILE: {"forget_prob": 0.5, "rounding": HOSTILE}}}
    runs = load_runs([make_run(training=training, evaluation=evaluation)])
    for table in [setup_table(runs), *evaluation_tables(runs), *attack_tables(runs)]:
        text = table.to_markdown()
        check_markdown(text)
        assert len(text.splitlines()) == 2 + len(table.cells)
        check_shown(table.to_rich())
    assert r"\[/x\]\|\`\*a\*\` \<b\> \$x\$ \# \\x1b\[2J\\u202e" in setup_table(runs).to_markdown()
