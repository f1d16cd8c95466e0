"""Disks as small as a test wants them: real ones, which a process of its own mounts, and which go with it."""

import ctypes
import os
import resource
import shutil
import sys
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000  # of sched.h
_REMOUNT, _PRIVATE_ALL = 0x20, 0x4000 | 0x40000  # of sys/mount.h
_LARGE, _PAGE = 2**30, resource.getpagesize()
_OF_OTHERS = "file of others"
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")


class Disk:
    """
    A file system in memory, which this process alone sees.

    Args:
        root (`pathlib.Path`): Existing folder that it is mounted at.
    """

    def __init__(self, root: Path):
        self.root = root
        _mount("tmpfs", root, "tmpfs", 0, f"size={_LARGE}")
        (root / _OF_OTHERS).write_text("A disk without a file cannot be full.")

    @property
    def used(self) -> int:
        """Bytes that its files take."""
        space = os.statvfs(self.root)
        return (space.f_blocks - space.f_bfree) * space.f_frsize

    def leave(self, room: int = _LARGE) -> None:
        """Make the disk so small, or so large, that this many bytes are free."""
        _mount("tmpfs", self.root, "tmpfs", _REMOUNT, f"size={self.used + room}")

    def clear(self) -> None:
        """Remove what a test has written."""
        self.leave()
        for path in self.root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _OF_OTHERS:
                path.unlink()

    def rooms(self, work: Callable[[], None]) -> list[int]:
        """
        How much room `work` must have to come to the middle of each file that it writes, rising, and then to its end.
        """
        before, levels, is_on = self.used, {0}, True

        def watch(event: str, args: tuple) -> None:
            if is_on and is_change(event, args, self.root):
                levels.add(self.used - before)

        sys.addaudithook(watch)
        work()
        is_on = False
        levels = sorted(level for level in {*levels, self.used - before} if level >= 0)
        return [(low + high) // 2 // _PAGE * _PAGE for low, high in pairwise(levels)] + levels[-1:]


def is_change(event: str, args: tuple, folder: Path) -> bool:
    """Whether an event, as audit hooks get it, changes a file in a folder."""
    if event not in _CHANGES and not (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
        return False
    is_relative = event != "open" and args[-1] >= 0  # to the folder of that descriptor
    return str(folder) in (os.readlink(f"/proc/self/fd/{args[-1]}") if is_relative else str(args[0]))


def in_a_process(work: Callable[[], str | None]) -> None:
    """Call `work` in a process forked from this one. What it raises, or returns, fails the test."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        torch.set_num_threads(torch.get_num_threads())  # a new pool, before two threads ask for one at once
        try:
            said = work() or ""
        except BaseException:
            said = traceback.format_exc()
        os.write(writer, said.encode()[-60_000:])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if said == _NO_DISK:
        pytest.skip(said)
    if said or status:
        pytest.fail(said or f"the process ended with {status}", pytrace=False)


def on_a_disk(root: Path, work: Callable[[Disk], None]) -> None:
    """Call `work` with a disk at `root`, as [`in_a_process`] does."""
    root.mkdir(exist_ok=True)
    in_a_process(lambda: work(Disk(root)) if _may_mount() else _NO_DISK)


_NO_DISK = "no file system can be mounted here, not even in a namespace of its own (unshare -Urm)"


def _may_mount() -> bool:
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(_NEW_MOUNTS):
        if libc.unshare(_NEW_MOUNTS | _NEW_USER):
            return False
        for name, content in {"setgroups": "deny", "uid_map": f"0 {user} 1", "gid_map": f"0 {group} 1"}.items():
            Path("/proc/self", name).write_text(content)
    return libc.mount(b"none", b"/", None, ctypes.c_ulong(_PRIVATE_ALL), None) == 0


def _mount(source: str, place: Path, kind: str, flags: int, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    texts = [os.fsencode(text) for text in (source, place, kind, options)]
    if libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))
