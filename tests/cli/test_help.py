import re
import subprocess
import sys

import pytest

from wagle_trl.cli.help import HELP
from wagle_trl.cli.main import COMMANDS, main
from wagle_trl.cli.option_texts import OBJECTIVES
from wagle_trl.cli.parser import WagleParser


@pytest.fixture
def actions_of(monkeypatch, capsys):
    """What the parser of a command knows, by option or argument."""

    def actions(command):
        parsers = []
        monkeypatch.setattr(WagleParser, "print_help", lambda parser, *args: parsers.append(parser))
        with pytest.raises(SystemExit):
            main([command, "--help-all"])
        (parser,) = parsers
        return {name: a for a in parser._actions for name in a.option_strings or [a.metavar]}

    return actions


def shown(command, capsys):
    assert main([command, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_short_help_is_of_a_screen_or_two_with_what_it_does_and_an_example(command, capsys):
    text = shown(command, capsys)
    assert len(text.splitlines()) <= 85 and max(map(len, text.splitlines())) <= 130
    assert f"{COMMANDS[command][1]}." in text and f"example:\n  wagle {command}" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_short_help_is_one_of_the_command_with_its_default(command, actions_of):
    actions = actions_of(command)
    groups = [group for group in HELP[command].groups.values() if group is not OBJECTIVES]  # these are values
    for name, text in ((name, text) for group in groups for name, text in group.items()):
        assert name in actions
        if default := re.search(r"\(default: (.*?)\)", text):
            assert str(actions[name].default) == default[1], name
    if HELP[command].is_complete:
        listed = {name for group in groups for name in group}
        assert {a.dest for a in actions.values()} - {"help"} == {actions[name].dest for name in listed}


@pytest.mark.parametrize("command", [name for name in COMMANDS if HELP[name].example])
def test_every_example_has_options_that_its_command_knows(command, actions_of):
    actions = actions_of(command)
    names = [word for word in HELP[command].example.split() if word.startswith("--")]
    assert all(name in actions or name == "--config" for name in names)


@pytest.mark.parametrize("argv", [["npo", "-h"], ["help", "npo"], ["npo", "--beta", "1", "--help"]])
def test_other_ways_to_ask_for_help(argv, capsys):
    text = shown("npo", capsys)
    assert main(argv) == 0
    assert capsys.readouterr().out == text


def test_help_alone_lists_the_commands(capsys):
    assert main(["help"]) == 0
    assert "usage: wagle COMMAND" in capsys.readouterr().out


def test_help_of_a_command_that_does_not_exist_is_bad_usage(capsys):
    assert main(["help", "fly"]) == 2
    assert "unknown command; expected one of demo" in capsys.readouterr().err


def test_short_help_needs_neither_torch_nor_transformers():
    code = "import sys; from wagle_trl.cli.main import main; main(['unlearn', '--help']); main(['np'])"
    code += "; sys.exit(bool({'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("argv", "guess"),
    [
        (["npoo"], "unknown command; did you mean npo?"),
        (["verfy"], "unknown command; did you mean verify?"),
        (["npo", "--learning_rat", "1"], "no option --learning_rat; did you mean --learning_rate?"),
        (["npo", "--learning-rat=1"], "no option --learning-rat; did you mean --learning_rate?"),
        (["npo", "--lr", "1"], "no option --lr; did you mean --learning_rate?"),
        (["npo", "--forget", "rows.csv"], "no option --forget; did you mean --forget_dataset?"),
        (["plan", "--gpus", "24GB"], "no option --gpus; did you mean --gpu?"),
        (["eval", "--atack", "relearn"], "no option --atack; did you mean --attack?"),
        (["undo", "delta", "model", "--output_dirr", "new"], "no option --output_dirr; did you mean --output_dir?"),
        (["push", "--hub_model", "a/b"], "no option --hub_model; did you mean --hub_model_id?"),
        (["env", "--colour"], "no option --colour (see"),
        (["npo", "--output_dir", "out", "rows.csv"], "'rows.csv' belongs to no option"),
    ],
    ids=" ".join,
)
def test_a_misspelling_is_one_line_with_a_guess(argv, guess, capsys):
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"wagle {argv[0]}: error: ") and guess in line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_guesses(command, capsys):
    assert main([command, "--zzz"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"wagle {command}: error: there is no option --zzz (see `wagle {command} --help`)"


def test_a_misspelt_key_of_a_file_gets_a_guess(tmp_path, capsys):
    (tmp_path / "options.yaml").write_text("learning_rte: 1e-5\n")
    assert main(["npo", "--config", str(tmp_path / "options.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "options.yaml: there is no option 'learning_rte'; did you mean learning_rate?" in line
