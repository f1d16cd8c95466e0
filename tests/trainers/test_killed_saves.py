"""A process that is killed while it saves leaves a checkpoint to resume from, and no file that is half of another."""

import itertools
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from wagle_trl.files.manifest import Manifest, files_in
from wagle_trl.trainers.resuming import newest_whole_checkpoint

OPTIONS = dict(max_steps=4, save_strategy="steps", save_steps=1, lr_scheduler_type="linear")
# What two equal runs write otherwise: it names their folder, times or memory, or is pickled in another order
NAME_THEIR_RUN = {"README.md", "rng_state.pth", "trainer_state.json", "training_args.bin", "wagle_report.json"}
LAST = 3  # the step whose save is killed
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree")


def kill_before_change(number: int, folder: Path) -> None:
    """From now on this process is killed before it changes anything in `folder` for the time `number`, from 0."""
    numbers = itertools.count()

    def watch(event: str, args: tuple) -> None:
        is_change = event in _CHANGES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR))
        if is_change and str(folder) in os.fsdecode(args[0] or "") and next(numbers) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def after_every_kill(save, folder: Path, examine) -> int:
    """
    Kills copies of this process at every change that `save` makes in `folder`, one after the other, and has `examine`
    look at what each leaves; the number of kills. `save` ends the process that it saves in.
    """
    shutil.copytree(folder, before := folder.with_name("before"))
    for number in itertools.count():
        child = os.fork()
        if child == 0:
            kill_before_change(number, folder)
            save()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        examine()
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return number
        shutil.rmtree(folder)
        shutil.copytree(before, folder)


class KilledAtSave(TrainerCallback):
    """Before the save of step `LAST`, that save is tried and killed at every change of a file."""

    def __init__(self, folder: Path, examine):
        self.folder, self.examine, self.kills = folder, examine, 0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == LAST and not self.kills:
            self.trainer.finish_saves()  # a copy of this process has no thread that would
            self.kills = after_every_kill(lambda: self.save(model), self.folder, self.examine)

    def save(self, model):
        self.trainer._save_checkpoint(model, None)
        self.trainer.finish_saves()


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


@pytest.mark.parametrize("limit", [1, 2])
def test_a_kill_anywhere_in_a_save_leaves_a_whole_checkpoint_that_is_bit_identical(
    limit, make_trainer, small_mask, tmp_path
):
    whole = make_trainer(mask_config=small_mask, output_dir=str(tmp_path / "whole"), **OPTIONS)
    whole.train()
    expected = {step: contents(tmp_path / "whole" / f"checkpoint-{step}") for step in (2, 3)}
    found = []

    def examine():
        checkpoint = newest_whole_checkpoint(str(tmp_path / "out"))
        found.append(int(checkpoint.name.split("-")[1]))
        left = contents(checkpoint)
        assert left.keys() == expected[found[-1]].keys()
        for name in left.keys() - NAME_THEIR_RUN:
            assert left[name] == expected[found[-1]][name], name

    trainer = make_trainer(mask_config=small_mask, save_total_limit=limit, **OPTIONS)
    killed = KilledAtSave(tmp_path / "out", examine)
    killed.trainer = trainer
    trainer.add_callback(killed)
    trainer.train()
    assert killed.kills > 30 and set(found) == {2, 3}
    assert found == sorted(found)  # once the new one is whole, it stays


@pytest.mark.parametrize("point", ["middle", "last"])
def test_a_run_that_was_killed_goes_on_to_the_same_weights(point, make_trainer, small_mask, tmp_path):
    whole = make_trainer(mask_config=small_mask, output_dir=str(tmp_path / "whole"), **OPTIONS)
    whole.train()
    number = {"middle": 25, "last": 45}[point]
    child = os.fork()
    if child == 0:
        trainer = make_trainer(mask_config=small_mask, save_total_limit=1, **OPTIONS)
        trainer.add_callback(_Armed(number, tmp_path / "out"))
        trainer.train()
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    resumed = make_trainer(mask_config=small_mask, save_total_limit=1, **OPTIONS)
    resumed.train(resume_from_checkpoint=True)
    expected = dict(whole.model.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in resumed.model.named_parameters())
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-4"]


class _Armed(TrainerCallback):
    def __init__(self, number: int, folder: Path):
        self.number, self.folder = number, folder

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == LAST:
            kill_before_change(self.number, self.folder)


def test_a_kill_while_a_model_is_saved_leaves_each_file_as_it_was_or_as_it_will_be(make_trainer, small_mask, tmp_path):
    out = tmp_path / "out"
    trainer = make_trainer(mask_config=small_mask, save_delta=True)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    old = contents(out)
    trainer.train()
    trainer.save_model(str(tmp_path / "new"))
    new, seen = contents(tmp_path / "new"), set()

    def examine():
        left = contents(out)
        for name in left.keys() - {"wagle_report.json", "README.md", "wagle_mask.png"}:
            assert left[name] in (old.get(name), new.get(name)), name
        is_whole = not Manifest.read(out).changed(out)
        seen.add((is_whole, left["model.safetensors"] == new["model.safetensors"]))

    assert after_every_kill(trainer.save_model, out, examine) > 20
    # As before, then by its manifest a mixture, then the new one
    assert seen == {(True, False), (False, False), (False, True), (True, True)}
