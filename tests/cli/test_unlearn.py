"""`wagle unlearn`: every objective by its name, on the command line and in a file."""

import json
from dataclasses import fields

import pytest
from transformers import LlamaConfig

from wagle_trl import WeightMask
from wagle_trl.cli import option_texts
from wagle_trl.cli.main import main
from wagle_trl.objectives.names import OBJECTIVES
from wagle_trl.unlearning.config import UnlearningConfig

every_objective = pytest.mark.parametrize("objective", OBJECTIVES)


@pytest.fixture
def refusals(tmp_path):
    """Options that name a file of two refusals."""
    (tmp_path / "refusals.txt").write_text("I do not know.\nI cannot answer that.\n")
    return ["--refusals", str(tmp_path / "refusals.txt")]


@pytest.fixture
def unlearn(saved_model, data, quick, tmp_path):
    """`unlearn(*options)`: exit code and report of two steps with all weights."""

    def run(*options, command="unlearn"):
        own = ["--mask", "none", "--trajectory_steps", "0"]
        code = main([command, "--model_name_or_path", saved_model, *data, *quick, *own, *options])
        report = tmp_path / "out" / "wagle_report.json"
        return code, json.loads(report.read_text()) if report.exists() else {}

    return run


@every_objective
def test_every_objective_runs_and_its_report_names_it_and_its_paper(objective, unlearn, refusals):
    code, report = unlearn("--objective", objective, *refusals)
    trainer = OBJECTIVES[objective]
    assert (code, report["steps"], report["objective"]) == (0, 2, trainer._name)
    assert report["paper"]["arxiv"] == trainer._paper.arxiv


@every_objective
def test_the_help_of_an_objective_shows_its_own_options(objective, capsys):
    assert main(["unlearn", "--objective", objective, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"\n{option_texts.OBJECTIVES[objective]}.\n" in text
    assert f"example:\n  wagle unlearn --objective {objective} --model_name_or_path" in text
    config = OBJECTIVES[objective].config_class
    own = {option.name for option in fields(config)} - {option.name for option in fields(UnlearningConfig)}
    assert all(f"  --{name} " in text for name in own)
    assert f"(default: {config.retain_weight})" in text and "--refusals" in text


def test_every_objective_has_a_line_with_its_paper():
    assert option_texts.OBJECTIVES.keys() == OBJECTIVES.keys()
    for name, trainer in OBJECTIVES.items():
        assert option_texts.OBJECTIVES[name].endswith(f"(arXiv {trainer._paper.arxiv})")


def test_all_options_are_those_of_the_objective(capsys):
    for argv, own in ((["--objective", "simnpo"], {"--beta", "--delta"}), ([], set())):
        with pytest.raises(SystemExit):
            main(["unlearn", *argv, "--help-all"])
        text = capsys.readouterr().out
        assert {name for name in ("--beta", "--delta") if f"\n  {name} " in text} == own
        assert "\n  --retain_weight " in text and "\n  --objective " in text


@pytest.fixture(scope="module")
def config_alone(tmp_path_factory):
    """Folder with the config of a small model and nothing else."""
    folder = tmp_path_factory.mktemp("config")
    LlamaConfig(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=1).save_pretrained(folder)
    return str(folder)


@every_objective
def test_every_objective_is_planned_with_its_rows(objective, config_alone, capsys):
    def activations(*options):
        options = ["--model_name_or_path", config_alone, "--max_length", "64", "--gpu", "24GB", *options]
        assert main(["plan", *options, "--mask", "none", "--json"]) == 0
        return json.loads(capsys.readouterr().out)["training"]["activations"]

    trainer = OBJECTIVES[objective]
    rows = len(trainer.rows_of(trainer.config_class(output_dir="out", report_to="none", bf16=False)))
    alone = activations("--objective", "sft", "--per_device_train_batch_size", "8")
    planned = activations("--objective", objective, "--per_device_train_batch_size", "8")
    # Losses of distributions keep hidden states and what their chunks are made of, too
    on_states = trainer.distributions or trainer.reference == "hidden_states"
    assert planned == pytest.approx(rows * alone, rel=0.15 if on_states else 0.01)


def test_a_file_names_the_objective_and_the_command_line_wins(unlearn, tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("objective: simnpo\nbeta: 3.5\n")
    _, report = unlearn("--config", str(path))
    assert (report["objective"], report["options"]["beta"]) == ("SimNPO", 3.5)
    assert report["options"]["delta"] == 0.0
    _, report = unlearn("--config", str(path), "--objective=wga")
    assert (report["objective"], report["options"]["beta"]) == ("WGA", 3.5)


def test_a_short_form_takes_its_own_name(unlearn):
    code, report = unlearn("--objective", "graddiff", command="graddiff")
    assert code == 0 and (report["objective"], report["options"]["retain_weight"]) == ("GradDiff", 10.0)


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["unlearn"], "No objective: give --objective npo, graddiff, "),
        (["unlearn", "--objective", "simpo"], "There is no objective 'simpo'; did you mean simnpo?"),
        (["unlearn", "--objective", "SimNPO"], "There is no objective 'SimNPO'; did you mean simnpo?"),
        (["unlearn", "--objective", "ga"], "There is no objective 'ga'; did you mean gradient_ascent?"),
        (["unlearn", "--objective", "fly"], "There is no objective 'fly'; expected one of npo, "),
        (["unlearn", "--objective", "fly", "--help"], "There is no objective 'fly'; expected one of npo, "),
        (["unlearn", "--objective"], "argument --objective: expected one argument"),
        (["unlearn", "--objective", "npo", "--delta", "1"], "there is no option --delta; it is an option of simnpo ("),
        (["unlearn", "--beta", "1"], "there is no option --beta; it is an option of npo, simnpo, "),
        (["graddiff", "--beta", "1"], "there is no option --beta; it is an option of npo, simnpo, "),
        (["npo", "--objective", "wga"], "The command names the objective npo, and --objective names wga; name one"),
        (["npo", "--config", "{file}"], "The command names the objective npo, and {file} names simnpo; name one"),
        (["tune", "npo", "--config", "{file}"], "The command names the objective npo, and {file} names simnpo; name"),
        (
            ["unlearn", "--objective", "npo", "--config", "{file}"],
            "there is no option 'delta'; it is an option of sim",
        ),
        (["unlearn", "--config", "{list}"], "There is no objective '['npo']'"),
        (
            ["unlearn", "--config", "{choice}"],
            "'attributed_rows' cannot be \"other\"; expected one of forget, alternate.",
        ),
        (["mask", "--objective", "sft"], "There is no objective 'sft'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line(argv, problem, tmp_path, capsys):
    files = {
        "choice": "objective: po\nattributed_rows: other\n",
        "file": "objective: simnpo\ndelta: 1\n",
        "list": "objective: [npo]\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    paths = {name: str(tmp_path / f"{name}.yaml") for name in files}
    assert main([argument.format(**paths) for argument in argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"wagle {argv[0]}: error: ") and problem.format(**paths) in line


@pytest.mark.parametrize("objective", ["po", "idkdpo", "altpo", "idk_ap"])
def test_an_objective_without_its_alternates_is_one_line(objective, unlearn, capsys):
    assert unlearn("--objective", objective) == (2, {})
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("wagle unlearn: error: ") and "alternate" in line and "--refusals" in line


def test_a_mask_is_of_the_rows_that_the_objective_names(saved_model, data, quick, refusals, tmp_path):
    def mask(rows):
        options = ["--objective", "po", "--attributed_rows", rows, *refusals, "--mask_score", "gradient"]
        argv = ["mask", "--model_name_or_path", saved_model, *data, *quick, *options]
        assert main([*argv, "--output_dir", str(tmp_path / rows)]) == 0
        return WeightMask.load(tmp_path / rows)

    assert mask("forget") != mask("alternate")


def test_comparison_and_card_name_the_objective_and_its_paper(unlearn, refusals, tmp_path):
    assert unlearn("--objective", "idk_ap", *refusals)[0] == 0
    run, place = str(tmp_path / "out"), tmp_path / "comparison"
    assert main(["report", run, "--output_dir", str(place)]) == 0
    assert "IDK+AP" in (place / "report.md").read_text()
    assert main(["card", run]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    paper = OBJECTIVES["idk_ap"]._paper
    assert f"Objective: IDK+AP ({paper.link})" in card and paper.bibtex in card and "\n- idk-ap\n" in card
    assert str(tmp_path) not in card
