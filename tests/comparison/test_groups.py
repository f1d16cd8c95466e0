import json

import pytest

from wagle_trl.comparison.document import write_document
from wagle_trl.comparison.groups import Group, group_runs
from wagle_trl.comparison.interval import Interval
from wagle_trl.comparison.runs import load_runs
from wagle_trl.comparison.tables import attack_tables, kept_tables, setup_table

from ..support.fuzzing import check_markdown, check_shown
from .conftest import EVALUATION, TRAINING


def labels_of(folders):
    return [line.label for line in group_runs(load_runs(folders))]


def test_the_interval_is_that_of_student_t():
    """Against a table: t is 12.706 with 1 degree of freedom, and 4.303 with 2."""
    assert Interval.of([1.0, 3.0]) == Interval(2.0, pytest.approx(12.706, abs=1e-3), 2, 2)
    assert Interval.of([0.45, 0.55, 0.65]).half == pytest.approx(4.303 * 0.1 / 3**0.5, abs=1e-4)
    assert Interval.of([0.5], total=3) == Interval(0.5, None, 1, 3)


def test_runs_of_several_seeds_are_a_group_though_each_seed_has_its_base(seeds):
    (group,) = group_runs(load_runs(seeds()))
    assert isinstance(group, Group) and [run.seed for run in group.runs] == [1, 2, 3]
    numbers = group.numbers()
    assert numbers["base_model"] == "/models/seed-*/base" and "seed" not in numbers
    assert numbers["retain_weight"] == 5.0
    assert numbers["unseen_retain_at_0.3"] == Interval(pytest.approx(0.65), pytest.approx(0.1863, abs=1e-4), 3, 3)
    assert numbers["forget_prob"].mean == pytest.approx(0.2)
    assert numbers["quantize_int8_forget_prob"].mean == pytest.approx(0.14)
    assert numbers["steps"].mean == 10


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mask": None}, ["fisher_ratio (3 seeds)", "dense (3 seeds)"]),
        ({"mask": None, "peft_type": "LORA"}, ["fisher_ratio (3 seeds)", "LORA (3 seeds)"]),
        ({"objective": "GradDiff"}, ["NPO (3 seeds)", "GradDiff (3 seeds)"]),
        ({"options": {"learning_rate": 1e-3}}, ["learning rate 2e-05 (3 seeds)", "learning rate 0.001 (3 seeds)"]),
        ({"options": {"retain_weight": 1.0}}, ["retain weight 5 (3 seeds)", "retain weight 1 (3 seeds)"]),
        ({"options": {"peft_r": 2}}, ["peft r default (3 seeds)", "peft r 2 (3 seeds)"]),
        ({"options": {"max_length": 64}}, ["max length default (3 seeds)", "max length 64 (3 seeds)"]),
        (
            {"tokenization": {"completion_only_loss": False}},
            ["completion only loss default (3 seeds)", "completion only loss False (3 seeds)"],
        ),
        (
            {"data": {"forget": {"rows": 18, "source": "other"}}},
            ["forget rows forget (3 seeds)", "forget rows other (3 seeds)"],
        ),
    ],
    ids=["mask", "adapters", "objective", "rate", "retain weight", "rank", "length", "scored tokens", "rows"],
)
def test_groups_are_told_apart_by_what_differs(changes, expected, seeds):
    assert labels_of([*seeds("a"), *seeds("b", **changes)]) == expected


def test_masks_are_told_apart_by_their_options(seeds):
    def mask(density, **info):
        return TRAINING["mask"] | {"density": density, "info": {"score": "wagle", "gamma": "balanced", **info}}

    folders = [
        *seeds("a", mask=mask(0.05)),
        *seeds("b", mask=mask(0.1)),
        *seeds("c", mask=mask(0.1, gamma="official")),
    ]
    assert labels_of(folders) == [
        "density 0.05 (3 seeds)",
        "density 0.1, gamma balanced (3 seeds)",
        "density 0.1, gamma official (3 seeds)",
    ]


def test_two_base_models_are_two_groups_of_the_same_seeds(seeds):
    """As `llama-1` is the base of all seeds, its number is no seed."""
    folders = [*seeds("a", base_model="user/llama-1"), *seeds("b", base_model="user/llama-3")]
    assert labels_of(folders) == ["base model user/llama-1 (3 seeds)", "base model user/llama-3 (3 seeds)"]


def test_bases_of_one_name_and_other_weights_are_not_averaged(seeds):
    def mask(fingerprint):
        return TRAINING["mask"] | {"info": {"score": "wagle", "fingerprint": fingerprint}}

    folders = [*seeds("a", base_model="base", mask=mask("x")), *seeds("b", base_model="base", mask=mask("y"))]
    assert len(labels_of(folders)) == 2


def test_runs_of_one_seed_and_models_that_were_only_evaluated_stay_alone(make_run, seeds):
    folders = [
        make_run("a", training=None, evaluation=EVALUATION),
        make_run("b", training=None, evaluation=EVALUATION),
    ]
    options = {"options": TRAINING["options"] | {"seed": 1}}
    folders += [make_run("c", TRAINING | options), make_run("d", TRAINING | options)]
    assert labels_of(folders) == ["a", "b", "c", "d"]


def test_a_seed_does_not_count_twice(seeds, make_run):
    folders = seeds()
    again = json.loads((load_runs(folders)[0].folder / "wagle_report.json").read_text())
    (group,) = group_runs(load_runs([*folders, make_run("again", again)]))
    assert len(group.runs) == 3 and group.numbers()["forget_prob"].total == 3
    assert group.remarks == ["again has a seed that another run has, and is left out of the mean."]


def test_what_some_runs_lack_says_so(seeds, make_run):
    folders = seeds()
    report = load_runs(folders)[0].folder / "wagle_report.json"
    content = json.loads(report.read_text())
    report.write_text(json.dumps(content | {"log_history": content["log_history"][:1]}))  # forgot nothing
    (table,) = kept_tables(group_runs(load_runs(folders)))
    line = dict(zip((column.heading for column in table.columns), table.cells[0][1:], strict=True))
    assert line["retain at 0.1"] == "0.800 (2 of 3)"
    assert line["forget, saved"].startswith("0.367 ± ")  # of all three: 0.9, 0.1 and 0.1


def test_two_kinds_of_rounding_have_no_common_mean(seeds):
    folders = seeds()
    file = load_runs(folders)[2].folder / "wagle_eval.json"
    content = json.loads(file.read_text())
    content["attacks"]["quantize_int8"] |= {"rounding": "bitsandbytes", "forget_prob": 0.9}
    file.write_text(json.dumps(content))
    (table,) = attack_tables(group_runs(load_runs(folders)))
    assert table.cells[-1][1:3] == ["int8 (nearest)", "0.140 (2 of 3)"]


def test_evaluations_with_other_options_have_no_common_mean(seeds, tmp_path):
    folders = seeds()
    for number, options in enumerate([{"forget_dataset": "seed-1"}, {"relearn_steps": 50, "mia_k": 0.2}, {}]):
        file = load_runs(folders)[number].folder / "wagle_eval.json"
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"options": content["options"] | options}))
    (group,) = group_runs(load_runs(folders))
    numbers = group.numbers()
    assert numbers["forget_prob"].mean == pytest.approx(0.2) and numbers["forget_prob"].count == 2  # of 0.1 and 0.3
    assert numbers["relearn_forget_prob"].count == 2 and numbers["steps"].count == 3
    assert group.remarks == [
        r"seed-2/npo was evaluated with other options than the first run (mia\_k, relearn\_steps); its evaluation is left "
        "out of the mean."
    ]
    files, _ = write_document([group], tmp_path)
    assert tmp_path / "relearning.png" not in files


def test_settings_are_columns_where_they_differ(seeds):
    runs = load_runs([*seeds("a"), *seeds("b", options={"retain_weight": 1.0, "beta": 0.2})])
    headings = [column.heading for column in setup_table(runs).columns]
    assert headings[5:8] == ["seed", "retain weight", "beta"]
    same = [column.heading for column in setup_table(runs[:1]).columns]
    assert "seed" not in same and "retain weight" not in same
    table = setup_table(group_runs(runs))
    assert [line[6:9] for line in table.cells] == [["1, 2, 3", "5", ""], ["1, 2, 3", "1", "0.2"]]


def test_text_of_files_means_nothing_in_the_name_of_a_group(seeds, tmp_path):
    hostile = "[/x]|`*a*` <b> $x$\n# \x1b[2J\u202e"
    lines = group_runs(load_runs([*seeds("a"), *seeds("b", objective=hostile, base_model=hostile)]))
    files, tables = write_document(lines, tmp_path)
    check_markdown(files[0].read_text(encoding="utf-8"))
    check_shown(*(table.to_rich() for table in tables))
    assert lines[1].label.isprintable()


def test_runs_that_were_never_measured_at_one_step_are_a_group_without_a_line(seeds, tmp_path):
    folders = seeds()
    for number, run in enumerate(load_runs(folders)):
        history = [entry | {"step": entry["step"] + number} for entry in run.training["log_history"]]
        (run.folder / "wagle_report.json").write_text(json.dumps(run.training | {"log_history": history}))
    (group,) = group_runs(load_runs(folders))
    assert group.average(lambda run: (run.trajectory["step"], run.trajectory["forget"])) == ([], [])
    files, _ = write_document([group], tmp_path)
    assert tmp_path / "trajectory.png" in files
