"""`wagle <command>`: runs the command, prints its output, and turns bad input into one line."""

import importlib
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from ..terminal import Terminal
from ..text import printable
from .guess import did_you_mean
from .help import HELP, short_help, unlearning_help
from .option_texts import OBJECTIVES
from .output import Advice, Output

_DEBUG_VALUES = (["underflow_overflow"], ["tpu_metrics_debug"])  # of `TrainingArguments`
_HELP = ("-h", "--help")
_MAX_LENGTH = 799  # characters of an error
_MAX_NOTE = 10_000  # a command to copy is long
EX_SOFTWARE = 70  # of sysexits.h; `os.EX_SOFTWARE` is missing on Windows

# command -> (module, what it does); a module has `run(argv, command) -> Output`
COMMANDS = {
    "demo": ("demo", "Train a tiny model, make it forget, and compare with dense and random masks"),
    "plan": ("plan", "Predict the memory of a run from the model's config, and find the change that makes it fit"),
    "mask": ("mask", "Compute a mask and show which layers it selects"),
    "unlearn": ("train", "Unlearn with any of the objectives that its help lists"),
    "npo": ("train", "Unlearn with negative preference optimization"),
    "graddiff": ("train", "Unlearn with gradient difference"),
    "alternates": (
        "alternates",
        "Let the model invent other answers to the forget rows, for altpo and others to teach",
    ),
    "tune": ("tune", "Choose learning rate, retain weight and mask of an objective by short runs"),
    "sft": ("train", "Fine-tune the selected weights"),
    "eval": (
        "evaluate",
        "Measure what a model still knows, without and under attack: TOFU, memorization, membership inference",
    ),
    "report": (
        "report",
        "Put finished runs side by side: tables, trajectories, masks and attacks as Markdown and PNG",
    ),
    "verify": ("verify", "Prove from the files that two models differ in nothing but the selected weights"),
    "delta": ("delta", "Write the changes of unlearning as one small file"),
    "apply": ("delta", "Make the unlearned model from its base and a delta"),
    "undo": ("delta", "Make the base from the unlearned model and a delta that holds the old values"),
    "merge": ("delta", "Merge the deltas of several forget requests against one base"),
    "adapter": ("adapter", "Write a delta as an adapter that PEFT loads"),
    "card": ("push", "Write the model card of a run"),
    "push": ("push", "Publish a run on the Hub: the model, its mask or its delta"),
    "env": ("env", "Show versions and devices"),
}


def main(argv: list[str] | None = None) -> int:
    """
    Run a command line.

    Args:
        argv (`list[str]`, *optional*): Arguments after `wagle`; by default those of the process.

    Returns:
        `int`: 0 done, 1 a check failed, 2 bad input or usage, 70 an unexpected error (`EX_SOFTWARE`), 130
        interrupted, 143 terminated (SIGTERM). Python's own 1 for a traceback would look like a failed check.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in _HELP:
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("wagle-trl"))
        return 0
    command, as_json = argv[0], "--json" in argv
    if command not in COMMANDS:
        advice = did_you_mean(command, COMMANDS) or f"; expected one of {', '.join(COMMANDS)}."
        print(printable(f"wagle {command}: error: unknown command{advice}", _MAX_LENGTH), file=sys.stderr)
        return 2
    argv = [argument for argument in argv[1:] if argument != "--json"]
    debug = _pop_debug(argv)
    try:
        if any(argument in _HELP for argument in argv):
            print(_short_help(command, argv))
            return 0
        with _cleaning_up_on_sigterm():
            argv = ["--help" if argument == "--help-all" else argument for argument in argv]
            return _show(_run(command, argv, as_json), as_json)
    except KeyboardInterrupt as stop:
        is_terminated = isinstance(stop, _Terminated)
        _close_bars()
        print(f"wagle {command}: {'terminated' if is_terminated else 'interrupted'}", file=sys.stderr)
        _show_advice(stop)
        return 143 if is_terminated else 130
    except Exception as error:
        if debug:
            raise
        return _explain(command, error)


def _short_help(command: str, argv: list[str]) -> str:
    """The short help; of `wagle unlearn` with an objective, that of the objective."""
    if command == "unlearn" and any(argument.startswith(("--objective", "--config")) for argument in argv):
        from .objectives import chosen_objective, own_options  # late: this imports the trainers, which takes seconds

        if objective := chosen_objective(argv):
            about = unlearning_help(own_options(objective))
            return short_help(f"{command} --objective {objective}", OBJECTIVES[objective], about)
    return short_help(command, COMMANDS[command][1], HELP[command])


class _Terminated(KeyboardInterrupt):
    """Raised by SIGTERM, so that it cleans up as Ctrl-C does."""


@contextmanager
def _cleaning_up_on_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield
        return
    process = os.getpid()

    def terminate(number: int, frame) -> None:
        if os.getpid() != process:  # a forked worker, which has nothing to clean up
            os._exit(128 + number)
        signal.signal(
            signal.SIGCHLD, lambda *_: None
        )  # SIGTERM may end workers, too, which torch would report as an error
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(command: str, argv: list[str], as_json: bool) -> Output:
    warnings.filterwarnings("ignore", category=FutureWarning)  # deprecations inside TRL and transformers
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # workers of a data loader fork after tokenizers were used
    if command == "demo":  # before huggingface_hub is imported: the demo must not wait for a network it does not need
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    module = importlib.import_module(f".{COMMANDS[command][0]}", __package__)
    if as_json:  # trainers print their logs to stdout, which belongs to the JSON object
        with redirect_stdout(sys.stderr):
            return module.run(argv, command)
    return module.run(argv, command)


def _explain(command: str, error: Exception) -> int:
    """Print an error as one line on stderr, and choose the exit code."""
    text = " ".join(str(error).split())
    from huggingface_hub.errors import HTTPError  # late, as `wagle --help` need not wait; covers every HTTP library
    from torch import OutOfMemoryError

    # ImportError: an optional package such as bitsandbytes is missing
    is_expected = isinstance(error, (ValueError, OSError, ImportError, OutOfMemoryError, HTTPError))
    advice = "run again with --debug for the traceback"
    message = f"error: {text}" if is_expected else f"unexpected {type(error).__name__}: {text}; {advice}"
    _close_bars()
    print(printable(f"wagle {command}: {message}", _MAX_LENGTH), file=sys.stderr)
    _show_advice(error)
    return 2 if is_expected else EX_SOFTWARE


def _show_advice(error: BaseException) -> None:
    """Print how to go on, which commands add to what interrupts them."""
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, Advice):
            print(printable(note, _MAX_NOTE), file=sys.stderr)


def _close_bars() -> None:
    """Close progress bars that were interrupted, so that the next message begins on its own line."""
    from tqdm import tqdm

    for bar in list(tqdm._instances):  # pyright: ignore[reportAttributeAccessIssue]
        bar.close()


def _show(output: Output, as_json: bool) -> int:
    if as_json:
        print(json.dumps(output.content, indent=2))
    else:
        terminal = Terminal()
        for table in output.tables:
            terminal.print(table, soft_wrap=isinstance(table, str))  # a command stays one line to copy
    return output.exit_code


def _pop_debug(argv: list[str]) -> bool:
    """Remove a `--debug` without a value. With one, it is the option of `TrainingArguments`."""
    for i, argument in enumerate(argv):
        if argument == "--debug" and argv[i + 1 : i + 2] not in _DEBUG_VALUES:
            del argv[i]
            return True
    return False


def _usage() -> str:
    lines = [f"  {name:12}{description}" for name, (_, description) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: wagle COMMAND [--config FILE.yaml] [OPTIONS] [--json] [--debug]",
            "",
            "Unlearning for large language models, as an extension of TRL.",
            "",
            *lines,
            "",
            "wagle COMMAND --help shows an example and the most common options, --help-all every option with its default.",
            "--json prints one JSON object on stdout, --debug shows the traceback of an error.",
        ]
    )
