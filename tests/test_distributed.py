"""Ranks, with and without a process group. Training on two processes is in tests/trainers/test_distributed.py."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import wagle_trl.distributed
from wagle_trl.distributed import broadcast_, rank, world_size


def _join(folder: Path, number: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    values = torch.full((3,), number + 1, dtype=torch.uint8)
    assert broadcast_(values) is values
    (folder / f"{number}.txt").write_text(f"{rank()} of {world_size()}: {values.tolist()}")
    dist.destroy_process_group()


def test_one_process_is_the_first_of_one_and_keeps_its_tensors():
    values = torch.tensor([1, 2])
    assert (rank(), world_size()) == (0, 1)
    assert broadcast_(values) is values and values.tolist() == [1, 2]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="starts its processes by fork")
def test_every_process_gets_the_tensor_of_the_first(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_join, args=(tmp_path, number)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [(tmp_path / f"{number}.txt").read_text() for number in range(2)] == [
        f"{number} of 2: [1, 1, 1]" for number in range(2)
    ]


def test_no_other_module_knows_torch_distributed():
    here = Path(wagle_trl.distributed.__file__)
    others = [path for path in here.parent.rglob("*.py") if path != here]
    assert [path for path in others if "torch.distributed" in path.read_text(encoding="utf-8")] == []
