import os
from dataclasses import dataclass, field
from typing import Literal

import pytest

from wagle_trl.cli.main import COMMANDS, main
from wagle_trl.cli.parser import config_file, parse
from wagle_trl.cli.train import option_types


@dataclass
class Options:
    """A few kinds of options."""

    rate: float = 1e-5
    steps: int = 3
    name: str = "run"
    parts: list[str] | None = field(default=None, metadata={"nargs": "+"})
    loading: dict | str | None = None
    save: bool = False
    loss: Literal["nll", "kl"] = "nll"
    tried: list[str] | None = field(default=None, metadata={"nargs": "+", "choices": ["small", "large"]})


@pytest.fixture
def write(tmp_path):
    def write(text, name="options.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def parsed(*argv):
    return parse([Options], list(argv), "npo")[0]


@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
@pytest.mark.parametrize("others", [[], ["--steps", "7"]])
def test_options_come_from_a_file_and_the_command_line_wins(form, others, write):
    path = write("rate: 1e-3\nsteps: 5\nname: 2024\nparts: [a, b]\nloading: {x: 1}\nsave: yes\n")
    options = parsed(*others, *form.format(path).split())
    assert (options.rate, options.steps, options.save) == (1e-3, 7 if others else 5, True)
    assert (options.parts, options.loading) == (["a", "b"], {"x": 1})


def test_the_file_is_found_wherever_its_option_stands():
    assert config_file(["a", "--config", "f", "--b", "1"]) == ("f", ["a", "--b", "1"])
    assert config_file(["a", "--config=f=g", "--b"]) == ("f=g", ["a", "--b"])
    assert config_file(["a", "--b"]) == (None, ["a", "--b"])


REFUSED = {
    "list for a number": ("rate: [1]", "'rate' cannot be a list (see `wagle npo --help`)"),
    "object for a number": ("steps: {a: 1}", "'steps' cannot be an object"),
    "null for a number": ("steps: null", "'steps' cannot be null"),
    "fraction for a whole number": ("steps: 2.5", "'steps' cannot be 2.5"),
    "object for text": ("name: {a: b}", "'name' cannot be an object"),
    "number in a list": ("parts: [[1]]", "'parts' cannot be a list"),
    "text for a number": ("rate: fast", "invalid float value: 'fast'"),
    "unknown name": ("speed: 3", "there is no option 'speed'"),
    "name of the parser's own": ("self: 3", "there is no option 'self'"),
    "text that is no choice": ("loss: kll", "'loss' cannot be \"kll\"; did you mean kl?"),
    "texts that are no choices": (
        "tried: [small, other]",
        "'tried' cannot be \"other\"; expected one of small, large.",
    ),
    "syntax": ("rate: 1\nsteps: [", "line 2 is not readable as options in YAML"),
    "hostile name": ('"\\e[2J": 3', "there is no option '\\x1b[2J'"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_an_option_cannot_be_is_refused_with_file_and_name(text, message, write):
    path = write(text)
    with pytest.raises(ValueError) as caught:
        parsed("--config", path)
    assert path in str(caught.value) and message in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 800


@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_sets_no_environment_variables(command, form, write, capsys, monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    path = write("env:\n  HF_ENDPOINT: https://evil.test\n  TOKEN: secret\n")
    assert main([command, *form.format(path).split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert path in line and "'env' would set environment variables (HF_ENDPOINT, TOKEN)" in line
    assert "set what you trust in the shell" in line and "secret" not in line
    assert "HF_ENDPOINT" not in os.environ


@pytest.mark.parametrize("value", ["3", "[HF_ENDPOINT]", "", "{}"])
def test_nor_if_it_names_none(value, write):
    with pytest.raises(ValueError, match="'env' would set environment variables"):
        parsed("--config", write(f"env: {value}\n"))


TRUSTING = {
    "plain": ("trust_remote_code: true", "trust_remote_code"),
    "quoted": ("trust_remote_code: 'True'", "trust_remote_code"),
    "a number": ("trust_remote_code: 1", "trust_remote_code"),
    "yes": ("trust_remote_code: 'yes'", "trust_remote_code"),
    "nested": ("model_init_kwargs: {trust_remote_code: true}", "model_init_kwargs.trust_remote_code"),
    "deep": ("model_init_kwargs: {a: [{trust_remote_code: true}]}", "model_init_kwargs.a.0.trust_remote_code"),
    "JSON in a text": (
        "model_init_kwargs: '{\"trust\\u005fremote_code\": true}'",
        "model_init_kwargs.trust_remote_code",
    ),
    "merged": ("model_init_kwargs: {<<: {trust_remote_code: true}}", "model_init_kwargs.trust_remote_code"),
}


@pytest.mark.parametrize(("text", "key"), TRUSTING.values(), ids=TRUSTING)
def test_a_file_that_trusts_code_of_others_says_so(text, key, write, capsys):
    path = write(text)
    parse(option_types("npo"), ["--config", path, "--output_dir", "out"], "npo")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line == f"wagle npo: warning: {path} sets '{key}': code that comes with a model will run on this machine."


@pytest.mark.parametrize(
    "text", ["trust_remote_code: false", "model_init_kwargs: {trust_remote_code: 'no'}", "run_name: trust_remote_code"]
)
def test_one_that_does_not_says_nothing(text, write, capsys):
    parse(option_types("npo"), ["--config", write(text), "--output_dir", "out"], "npo")
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('push_to_hub: true\nhub_model_id: "a/b\\e[2J"', "a/b\\x1b[2J"),
        ("push_to_hub: 'yes'", "a repository of yours"),
    ],
)
def test_a_file_that_has_the_model_uploaded_says_where(text, place, write, capsys):
    path = write(text)
    parse(option_types("npo"), ["--config", path, "--output_dir", "out"], "npo")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line == f"wagle npo: warning: {path} uploads the model to {place}."
