"""A disk that is full at any of the files that a command writes: one line says so, and nothing is lost."""

import shutil
import tempfile
from collections.abc import Callable

import pytest

from wagle_trl.demo import run as demo

from ..support.disks import Disk, on_a_disk
from ..support.writers import TRAINERS, WRITERS, arguments, call, check_what_is_left, contents, succeed

SIZES = {"some": 4, "all": 10**6}  # of disks, too small at other files each; "all": one for every file that is written


def sizes_of(commands, *quick):
    """Each command on many disks, which takes minutes; some, that are quick or write most, on one of them always."""
    slow = [
        pytest.param(command, size, id=f"{command}-{name}", marks=pytest.mark.slow)
        for command in commands
        for name, size in SIZES.items()
    ]
    return [*(pytest.param(command, 1, id=f"{command}-one") for command in quick), *slow]


def fill(disk: Disk, command: str, argv: list[str], start: Callable[[], None], sizes: int) -> None:
    """Run a command on disks that are too small for it, then again with room, then on one that is just large enough."""
    start()
    *too_small, enough = disk.rooms(lambda: succeed(argv))
    distance = -(-len(too_small) // sizes)
    for room in too_small[distance // 2 :: distance]:
        start()
        before = contents(disk.root)
        disk.leave(room)
        code, lines, err = call(argv)
        disk.leave()
        assert code == 2 and len(lines) == 1, f"{room}: {err}"
        assert lines[0].startswith(f"wagle {argv[0]}: error: Cannot write ") and str(disk.root) in lines[0]
        assert len(lines[0]) < 800 and "wagle-tmp" not in lines[0]
        check_what_is_left(disk.root, before, command)
    is_resumed = command in TRAINERS and any(disk.root.glob("out/checkpoint-*"))
    succeed([*argv, "--resume_from_checkpoint", "true"] if is_resumed else argv)
    start()
    disk.leave(enough)
    succeed(argv)


@pytest.mark.parametrize(("command", "sizes"), sizes_of(WRITERS, "npo", "delta", "apply", "undo", "adapter", "card"))
def test_a_full_disk_is_one_line_and_leaves_nothing_half(command, sizes, inputs, tmp_path):
    writer, before = WRITERS[command], contents(inputs)

    def on_an_empty_disk(disk: Disk) -> None:
        def start():
            disk.clear()
            if writer.starts_from:
                shutil.copytree(inputs / writer.starts_from, disk.root / writer.starts_from)

        fill(disk, command, arguments(writer.line, inputs, disk.root), start, sizes)

    on_a_disk(tmp_path / "disk", on_an_empty_disk)
    assert contents(inputs) == before


@pytest.mark.parametrize(
    ("command", "sizes"), sizes_of([command for command, writer in WRITERS.items() if writer.other], "delta", "eval")
)
def test_what_an_earlier_command_wrote_stays_when_the_disk_is_full(command, sizes, inputs, tmp_path):
    def on_a_used_disk(disk: Disk) -> None:
        line, other = (arguments(line, inputs, disk.root) for line in (WRITERS[command].line, WRITERS[command].other))
        succeed(other)
        shutil.copytree(disk.root / "out", tmp_path / "earlier")

        def start():
            disk.clear()
            shutil.copytree(tmp_path / "earlier", disk.root / "out")

        fill(disk, command, line, start, sizes)

    on_a_disk(tmp_path / "disk", on_a_used_disk)


@pytest.mark.parametrize(("what", "sizes"), sizes_of(["model", "mask", "delta"], "mask"))
def test_a_push_that_has_no_room_for_what_it_makes_uploads_nothing(what, sizes, inputs, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
    argv = ["push", str(inputs / "run-0"), "--what", what, "--hub_model_id", "user/run"]
    argv += ["--base_model_name_or_path", "user/base"]
    before = contents(inputs)
    on_a_disk(tmp_path / "disk", lambda disk: fill(disk, "push", argv, disk.clear, sizes))
    assert contents(inputs) == before
    assert (
        len(hub.repositories["user/run"].commits) == 2
    )  # when it was made, and of all that there was room for, again and again


@pytest.mark.slow
def test_the_demo_on_a_full_disk_is_one_line(tmp_path, monkeypatch):
    learn, people = demo.train, demo.people_rows
    monkeypatch.setattr(demo, "STEPS", 2)
    monkeypatch.setattr(demo, "train", lambda *args, **options: learn(*args, **options, epochs=1))
    monkeypatch.setattr(demo, "people_rows", lambda seed: people(30, seed))
    argv = ["demo", "--output_dir", str(tmp_path / "disk" / "out")]
    on_a_disk(tmp_path / "disk", lambda disk: fill(disk, "demo", argv, disk.clear, 8))
