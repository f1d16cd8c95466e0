"""SIGTERM and Ctrl-C at any change of a file, or in training: one line, nothing half, and the command runs again."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import Trainer

from ..support.disks import in_a_process, is_change
from ..support.writers import (
    NEW_FOLDERS,
    TRAINERS,
    WRITERS,
    arguments,
    call,
    check_what_is_left,
    contents,
    succeed,
)

MOMENTS = {"some": 5, "all": 10**6}
CODES = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}
SIGNALS = [*((command, signal.SIGTERM) for command in WRITERS), ("npo", signal.SIGINT), ("eval", signal.SIGINT)]
QUICK = [*((command, signal.SIGTERM) for command in ("npo", *NEW_FOLDERS, "delta", "card")), ("eval", signal.SIGINT)]
# One moment always, of commands that are quick or write most; many of every command take minutes
MOMENTS_OF_EACH = [
    *(pytest.param(command, number, 1, id=f"{command}-{number}-one") for command, number in QUICK),
    *(
        pytest.param(command, number, moments, id=f"{command}-{number}-{name}", marks=pytest.mark.slow)
        for command, number in SIGNALS
        for name, moments in MOMENTS.items()
    ),
]


class Changes:
    """Counts the changes of files in a folder, from 0, and sends this process a signal before one of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.expect(None, None)
        sys.addaudithook(self._watch)

    def expect(self, number: int | None, with_signal: int | None) -> None:
        self._numbers, self._number, self._signal = itertools.count(), number, with_signal

    @property
    def count(self) -> int:
        return next(self._numbers)

    def _watch(self, event: str, args: tuple) -> None:
        if is_change(event, args, self.folder) and next(self._numbers) == self._number:
            os.kill(os.getpid(), self._signal)


def start(disk: Path, command: str, inputs: Path) -> None:
    shutil.rmtree(disk, ignore_errors=True)
    disk.mkdir()
    if source := WRITERS[command].starts_from:
        shutil.copytree(inputs / source, disk / source)


@pytest.mark.parametrize(("command", "number", "moments"), MOMENTS_OF_EACH)
def test_a_signal_is_one_line_and_leaves_nothing_half(command, number, moments, inputs, tmp_path):
    disk = tmp_path / "disk"
    argv, (code, word) = arguments(WRITERS[command].line, inputs, disk), CODES[number]

    def work() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
        changes = Changes(disk)
        start(disk, command, inputs)
        changes.expect(None, None)
        succeed(argv)
        count, complete = changes.count, contents(disk).keys()
        distance = -(-count // moments)
        for moment in range(distance // 2, count, distance):
            changes.expect(None, None)
            start(disk, command, inputs)
            before = contents(disk)
            changes.expect(moment, number)
            found, lines, err = call(argv)
            changes.expect(None, None)
            assert (found, lines) == (code, [f"wagle {argv[0]}: {word}"]) and "Traceback" not in err, (
                f"{moment}: {err}"
            )
            check_what_is_left(disk, before, command)
            if command in NEW_FOLDERS and (disk / "out").exists():
                assert contents(disk).keys() == complete
                shutil.rmtree(disk / "out")
        is_resumed = command in TRAINERS and any(disk.glob("out/checkpoint-*"))
        succeed([*argv, "--resume_from_checkpoint", "true"] if is_resumed else argv)

    in_a_process(work)


@pytest.mark.parametrize(
    ("everybody", "number"),
    [
        pytest.param(True, signal.SIGTERM, id="with its workers-15"),
        pytest.param(True, signal.SIGINT, id="with its workers-2", marks=pytest.mark.slow),
        pytest.param(False, signal.SIGTERM, id="alone-15", marks=pytest.mark.slow),
        pytest.param(False, signal.SIGINT, id="alone-2", marks=pytest.mark.slow),
    ],
)
def test_a_signal_in_training_ends_workers_without_a_word(number, everybody, inputs, tmp_path, monkeypatch, capfd):
    disk = tmp_path / "disk"
    disk.mkdir()
    argv = arguments(WRITERS["npo"].line, inputs, disk)
    step, steps = Trainer.training_step, itertools.count(1)

    def signalled(*args, **options):
        if next(steps) == 2:  # from without: workers tell who sends it
            target = f"-{os.getpid()}" if everybody else str(os.getpid())
            subprocess.run(["kill", f"-{int(number)}", "--", target], start_new_session=True, check=True)
        return step(*args, **options)

    def work() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setpgid(0, 0)
        found, lines, err = call([*argv, "--dataloader_num_workers", "2", "--dataloader_persistent_workers", "true"])
        code, word = CODES[number]
        assert (found, lines) == (code, [f"wagle npo: {word}"]) and "Traceback" not in err, err
        check_what_is_left(disk, {}, "npo")
        assert any(disk.glob("out/checkpoint-1"))
        time.sleep(0.5)
        signal.raise_signal(signal.SIGCHLD)  # as workers do when they end

    monkeypatch.setattr(Trainer, "training_step", signalled)
    capfd.readouterr()
    in_a_process(work)
    assert capfd.readouterr() == ("", "")
