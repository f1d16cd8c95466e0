import json

import pytest

from wagle_trl.cli.main import main


@pytest.fixture
def finished(saved_model, data, quick, tmp_path):
    """Two runs of `wagle npo`, the first of them evaluated in its folder, as options of `wagle report`."""
    unlearn = ["npo", "--model_name_or_path", saved_model, *data, *quick, "--trajectory_steps", "1"]
    unlearn += ["--disable_tqdm", "false"]  # its default is another where a test before has silenced the log
    folders = [str(tmp_path / name) for name in ("masked", "dense")]
    for folder, mask in zip(folders, ("auto", "none"), strict=True):
        assert main([*unlearn, "--mask", mask, "--output_dir", folder]) == 0
    evaluate = ["eval", "--model_name_or_path", folders[0], *data, "--output_dir", folders[0], "--generate", "false"]
    assert main(evaluate) == 0
    return folders


@pytest.mark.parametrize("place", ["first", "last"])
def test_report_writes_a_document_of_what_the_commands_wrote(place, finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["report", "--json", *finished] if place == "first" else ["report", *finished, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["output_dir"] == "wagle-report"
    assert content["files"] == [
        f"wagle-report/{name}"
        for name in (
            "report.md",
            "trajectory.png",
            "trajectory.pdf",
            "trade_off.png",
            "trade_off.pdf",
            "masks.png",
            "masks.pdf",
            "memory.png",
            "memory.pdf",
            "runs.csv",
        )
    ]
    masked, dense = content["runs"]
    assert (masked["run"], masked["folder"], masked["mask_score"]) == ("masked", finished[0], "wagle")
    assert (dense["run"], dense["objective"], dense["steps"]) == ("dense", "NPO", 2)
    evaluation = json.loads((tmp_path / "masked" / "wagle_eval.json").read_text())
    assert masked["forget_prob"] == evaluation["forget_prob"]
    text = (tmp_path / "wagle-report" / "report.md").read_text()
    for number in (masked["forget_prob"], masked["final_forget"], dense["final_retain"]):
        assert f" {number:.3f} |" in text
    assert all((tmp_path / file).stat().st_size > 10_000 for file in content["files"][1:-1])


def test_runs_of_several_seeds_are_one_group(saved_model, data, quick, tmp_path, capsys):
    folders = [str(tmp_path / f"seed-{seed}") for seed in (1, 2)]
    for seed, folder in enumerate(folders, 1):
        options = [*quick, "--trajectory_steps", "1", "--seed", str(seed), "--output_dir", folder]
        assert main(["npo", "--model_name_or_path", saved_model, *data, *options, "--mask_score", "random"]) == 0
    capsys.readouterr()
    assert main(["report", *folders, "--json", "--output_dir", str(tmp_path / "report")]) == 0
    content = json.loads(capsys.readouterr().out)
    (group,) = content["groups"]
    assert (group["runs"], group["seeds"], group["mask_score"]) == (["seed-1", "seed-2"], [1, 2], "random")
    finals = [run["final_forget"] for run in content["runs"]]
    assert group["final_forget"]["mean"] == pytest.approx(sum(finals) / 2) and group["final_forget"]["n"] == 2
    assert [run["group"] for run in content["runs"]] == [group["group"]] * 2
    assert (tmp_path / "report" / "groups.csv").exists()


def test_report_prints_tables_and_where_the_document_is(finished, tmp_path, capsys):
    capsys.readouterr()
    assert main(["report", finished[0], "--output_dir", str(tmp_path / "compared")]) == 0
    out = capsys.readouterr().out
    assert "Options and peak memory" in out and "wagle" in out
    assert str(tmp_path / "compared" / "report.md") in out


def test_help_says_what_a_run_is(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["report", "--help-all"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "RUN [RUN ...]" in text and "wagle_eval.json" in text and "(default: wagle-report)" in text.replace("- ", "-")
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: RUN (see `wagle report --help`)"),
        (["missing"], "No run at 'missing': the folder does not exist."),
        (["empty"], "'empty' is not the folder of a run: it has neither wagle_report.json"),
        (["run", "run"], "run is given twice."),
        (["run", "--output_dir", "run/wagle_report.json"], "Cannot write to output_dir 'run/wagle_report.json'"),
        (["run", "--colour", "red"], "--colour"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wagle_report.json").write_text("{}")
    assert main(["report", *argv]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("wagle report: error: ") and message in line
    assert captured.out == "" and not (tmp_path / "wagle-report").exists()
