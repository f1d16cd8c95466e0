import json
import re

import pytest

from wagle_trl.cli.main import COMMANDS, main
from wagle_trl.cli.output import Output, key_value_table


def test_without_a_command_the_usage_is_shown_and_the_exit_code_is_2(capsys):
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_help_exits_with_0(capsys):
    assert main(["--help"]) == 0
    assert "usage: wagle" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["npo", "graddiff", "sft", "mask", "eval", "demo"])
def test_help_of_a_command_lists_every_option_with_its_default(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help-all"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    options = [line for line in text.splitlines() if line.startswith("  --")]
    assert len(options) == text.count("(default:")
    assert len(options) >= 2


@pytest.mark.parametrize(
    "option", ["--mask_score", "--mask_gamma", "--mask_scope", "--beta", "--retain_weight", "--mask"]
)
def test_npo_has_the_options_of_masks_and_of_the_objective(option, capsys):
    with pytest.raises(SystemExit):
        main(["npo", "--help-all"])
    assert re.search(rf"^  {option}[ ,]", capsys.readouterr().out, re.MULTILINE)  # a comma since Python 3.13


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fly"], "unknown command; expected one of demo, plan, mask, unlearn"),
        (["npo"], "No model: give --model_name_or_path"),
        (["npo", "--model_name_or_path", "nowhere/at-all", "--tofu_split", "forget10"], "nowhere/at-all"),
        (["npo", "--no_such_option", "1"], "there is no option --no_such_option"),
        (["npo", "--beta", "many"], "invalid float value: 'many' (see `wagle npo --help`)"),
        (["npo", "--mask_density", "2"], "mask_density must be in (0, 1], got 2.0."),
        (["npo", "--mask_score", "luck"], "invalid choice: 'luck' (choose from "),
        (["npo", "--config", "missing.yaml"], "missing.yaml"),
        (["eval", "--holdout_dataset", "a", "--tofu_dir", "b"], "Give either --holdout_dataset or --tofu_dir, not"),
        (["npo", "--resume_from_checkpoint", "missing"], "No checkpoint at 'missing': the folder does not exist."),
        (["eval"], "No data: give --forget_dataset"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith(f"wagle {argv[0]}: error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert "Traceback" not in captured.err and captured.out == ""


def test_debug_shows_the_error_itself():
    with pytest.raises(ValueError, match="No model"):
        main(["npo", "--debug"])


@pytest.mark.parametrize("argv", [["report", "--debug", "no-such-run"], ["report", "no-such-run", "--debug"]])
def test_debug_may_stand_before_a_run(argv):
    with pytest.raises(ValueError, match="No run at 'no-such-run'"):
        main(argv)


def test_a_config_option_without_a_file_is_bad_usage(capsys):
    assert main(["npo", "--config"]) == 2
    assert "argument --config: expected one argument" in capsys.readouterr().err


def test_env_as_json_is_one_object_with_versions(capsys):
    assert main(["env", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["trl"] and content["torch"] and content["device"]


def test_env_prints_a_table(capsys):
    assert main(["env"]) == 0
    assert "transformers" in capsys.readouterr().out


@pytest.fixture
def broken_env(monkeypatch):
    """Lets `wagle env` fail with a given exception."""

    def fail_with(error):
        def run(argv, command):
            raise error

        monkeypatch.setattr("wagle_trl.cli.env.run", run)

    return fail_with


def test_a_missing_package_is_bad_usage(broken_env, capsys):
    broken_env(ImportError("No package metadata was found for bitsandbytes"))
    assert main(["env"]) == 2
    assert "wagle env: error: No package metadata was found for bitsandbytes" in capsys.readouterr().err


def test_an_unexpected_error_is_one_line_and_never_looks_like_a_failed_check(broken_env, capsys):
    broken_env(KeyError("some\nthing"))
    assert main(["env"]) == 70
    expected = "wagle env: unexpected KeyError: 'some\\nthing'; run again with --debug for the traceback\n"
    assert capsys.readouterr().err == expected
    with pytest.raises(KeyError):
        main(["env", "--debug"])


HOSTILE = "\x1b[2J[/x]\u202e\ud800\r"


@pytest.mark.parametrize("error", [ValueError, OSError, KeyError])
def test_an_error_commands_no_terminal_and_is_one_short_line(error, broken_env, capsys):
    broken_env(error(f"the file {HOSTILE} {'x' * 10**5} {HOSTILE} mend it"))
    main(["env"])
    text = capsys.readouterr().err
    assert text.endswith("\n") and text[:-1].isprintable() and len(text) <= 800
    assert "the file" in text and "mend it" in text and r"\x1b[2J[/x]" in text


def test_what_a_command_shows_commands_no_terminal(monkeypatch, capsys):
    tables = [key_value_table(HOSTILE, {HOSTILE: HOSTILE, "list": [HOSTILE]}), f"one {HOSTILE}\ntwo"]
    monkeypatch.setattr("wagle_trl.cli.env.run", lambda argv, command: Output({}, tables))
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines) and lines[-1] == "two"
    assert r"\x1b[2J[/x]\u202e" in "".join(lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"log_history": {"a": 1}}, "wagle_report.json: 'log_history' should be a list, got an object."),
        ({"log_history": [{"loss": 1}]}, "wagle_report.json: 'log_history[0].step' is missing."),
        ({"options": [1]}, "wagle_report.json: 'options' should be an object, got a list."),
        ({"mask": {"density": "much"}}, "wagle_report.json: 'mask.num_selected' is missing."),
        ([1], "wagle_report.json: the content should be an object, got a list."),
    ],
)
@pytest.mark.parametrize("command", ["report", "card"])
def test_a_report_of_another_shape_is_one_line(command, content, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wagle_report.json").write_text(json.dumps(content))
    assert main([command, "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"wagle {command}: error: run/{message}"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["wagle_report.json"]
