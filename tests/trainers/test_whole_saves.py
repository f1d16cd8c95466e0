"""Training goes on while a checkpoint is made whole, and waits where somebody needs it so."""

import errno
import threading
from pathlib import Path

import pytest
from transformers import TrainerCallback

from wagle_trl.files.manifest import Manifest
from wagle_trl.files.run_folder import MANIFEST_FILE

SAVING = dict(max_steps=3, save_strategy="steps", save_steps=1)


def is_whole(checkpoint: Path) -> bool:
    return (checkpoint / MANIFEST_FILE).exists()


class StepsBegun(TrainerCallback):
    """Lets the first checkpoint become whole only when a step has begun after it."""

    def __init__(self, folder: Path):
        self.folder, self.event, self.whole = folder, threading.Event(), []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.whole.append(is_whole(self.folder / "checkpoint-1"))
            self.event.set()


def test_training_goes_on_while_a_checkpoint_becomes_whole(make_trainer, small_mask, tmp_path, monkeypatch):
    begun, of = StepsBegun(tmp_path / "out"), Manifest.of
    monkeypatch.setattr(Manifest, "of", lambda *args, **facts: begun.event.wait(60) and of(*args, **facts))
    make_trainer(mask_config=small_mask, callbacks=[begun], **SAVING).train()
    assert begun.whole == [False]
    assert all(is_whole(tmp_path / "out" / f"checkpoint-{step}") for step in (1, 2, 3))


class Listener(TrainerCallback):
    def __init__(self):
        self.found = []

    def on_save(self, args, state, control, **kwargs):
        self.found.append({path.name: is_whole(path) for path in Path(args.output_dir).glob("checkpoint-*")})


def test_a_callback_on_save_finds_the_checkpoint_whole_and_the_older_ones_gone(make_trainer, small_mask):
    listener = Listener()
    make_trainer(mask_config=small_mask, callbacks=[listener], save_total_limit=1, **SAVING).train()
    assert listener.found == [{f"checkpoint-{step}": True} for step in (1, 2, 3)]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_checkpoint_that_cannot_become_whole_ends_training_and_older_ones_stay(
    step, make_trainer, small_mask, tmp_path, monkeypatch
):
    of, trainer = Manifest.of, make_trainer(mask_config=small_mask, save_total_limit=1, **SAVING)

    def full(folder, *args, **facts):
        if folder.name == f"checkpoint-{step}":
            raise OSError(errno.ENOSPC, "No space left on device")
        return of(folder, *args, **facts)

    monkeypatch.setattr(Manifest, "of", full)
    with pytest.raises(OSError, match=rf"^Cannot write '.*checkpoint-{step}': No space left on device\."):
        trainer.train()
    assert trainer.state.global_step <= step + 1
    left = list((tmp_path / "out").glob("*checkpoint-*"))
    assert [path.name for path in left] == ([f"checkpoint-{step - 1}"] if step > 1 else [])
    assert all(map(is_whole, left))


def test_the_best_checkpoint_stays_alone_at_the_end(make_trainer, small_mask, retain_rows, tmp_path, monkeypatch):
    options = SAVING | dict(eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, save_total_limit=1)
    trainer = make_trainer(mask_config=small_mask, eval_dataset=retain_rows, **options)
    losses = iter((1.0, 2.0, 3.0))
    evaluate = trainer.evaluation_loop

    def worse_and_worse(*args, **kwargs):
        output = evaluate(*args, **kwargs)
        output.metrics["eval_loss"] = next(losses)
        return output

    monkeypatch.setattr(trainer, "evaluation_loop", worse_and_worse)
    trainer.train()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]
    assert is_whole(tmp_path / "out" / "checkpoint-1")
