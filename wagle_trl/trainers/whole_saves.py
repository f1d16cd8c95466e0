"""Saves that a kill or a full disk cannot damage: a folder is whole, with a manifest, or as it was before."""

import os
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from ..files.atomic import atomic_path, remove_folder, staging_folder, translate_disk_errors
from ..files.manifest import Manifest, files_in
from ..files.reading import read_json
from ..files.run_folder import CARD_FILE, EVALUATION_FILE, MANIFEST_FILE, PLOT_FILE, REPORT_FILE
from ..hub.staging import link_or_copy
from .trainer_base import TrainerBase

_REPLACED = ".replaced-"


class WholeSaves(TrainerBase):
    """
    Goes before a [`~transformers.Trainer`] in the bases of a class.

    A checkpoint gets its manifest when all of it is on the disk. Older checkpoints are removed only then, and training
    continues meanwhile. The files of `save_model` move into the folder together, when all of them are written; files
    of other weights, left there by an earlier save, are removed at the same time. Until then the folder stays as it is.
    """

    _saves_checkpoint = False
    _completion: Future[None] | None = None  # of the last checkpoint

    @abstractmethod
    def write_files(self, folder: Path, *, in_checkpoint: bool, with_delta: bool) -> None:
        """Write the model and the files that belong to it, a report among them."""

    @abstractmethod
    def write_card(self, folder: Path) -> list[str]:
        """Write the files that are made from the others in a folder, and return their names."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Describe what resuming from a checkpoint depends on."""

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            self.finish_saves()

    def _finalize_training(self, *args, **kwargs):
        self.finish_saves()  # its thread and the next line both remove checkpoints
        return super()._finalize_training(*args, **kwargs)

    def finish_saves(self) -> None:
        """Wait until the last checkpoint is whole and on the disk; an `OSError` if it could not be."""
        if self._completion is None:
            return
        try:
            self._completion.result()
        except KeyboardInterrupt:
            wait([self._completion])  # leave no checkpoint half written
            raise
        finally:
            self._completion = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as [`~transformers.Trainer.save_model`] does, all files or none."""
        folder = Path(output_dir or self.args.output_dir)
        if self._saves_checkpoint:
            self.write_files(folder, in_checkpoint=True, with_delta=False)
            return
        with self._staged(folder) as stage:
            self.write_files(stage, in_checkpoint=False, with_delta=not _internal_call)
            if self.args.should_save:
                self._land(stage, folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    @contextmanager
    def _staged(self, folder: Path) -> Iterator[Path]:
        if not self.args.should_save:  # the saving process creates the folder and moves the files
            self.accelerator.wait_for_everyone()
            yield folder
            self.accelerator.wait_for_everyone()
            return
        with staging_folder(folder) as stage:
            self.accelerator.wait_for_everyone()
            yield stage
            self.accelerator.wait_for_everyone()

    def _land(self, stage: Path, folder: Path) -> None:
        fingerprint, names = _reported_fingerprint(stage), files_in(stage)
        kept, superseded = _earlier_files(folder, [*names, CARD_FILE], fingerprint)
        link_into(folder, stage, {*kept, EVALUATION_FILE, PLOT_FILE} - superseded)
        names += self.write_card(stage)
        Manifest.of(stage, {*names, *kept}, fingerprint).move_into_place(stage, folder, instead_of=superseded)

    def _save_checkpoint(self, model, trial) -> None:
        self.finish_saves()
        run_folder = self._get_output_dir(trial=trial)
        folder = Path(run_folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        # Transformers would remove older checkpoints before this one is whole
        limit, self.args.save_total_limit, self._saves_checkpoint = self.args.save_total_limit, None, True
        try:
            with translate_disk_errors(folder), self._new_checkpoint(folder):
                super()._save_checkpoint(model, trial)
                if self.args.should_save:
                    self.write_card(folder)
        finally:
            self.args.save_total_limit, self._saves_checkpoint = limit, False
        if self.args.should_save:
            facts, best = self.facts(), self.state.best_model_checkpoint
            self._completion = _in_background(lambda: _complete(folder, facts, limit, best))
            if any(
                type(callback).on_save is not TrainerCallback.on_save for callback in self.callback_handler.callbacks
            ):
                self.finish_saves()  # these callbacks read what was saved

    @contextmanager
    def _new_checkpoint(self, folder: Path) -> Iterator[None]:
        """Make room for a checkpoint; after a failure the folder is as it was."""
        if not self.args.should_save:
            self.accelerator.wait_for_everyone()
            yield
            self.accelerator.wait_for_everyone()
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        restore_replaced(folder.parent)
        with _restored_on_failure(folder):
            if folder.exists():
                os.replace(folder, _replaced(folder))
            self.accelerator.wait_for_everyone()
            yield
            self.accelerator.wait_for_everyone()


def _in_background(work: Callable[[], None]) -> Future[None]:
    # One executor per save: after a fork, a shared one would have lost its thread
    executor = ThreadPoolExecutor(1, thread_name_prefix="wagle-save")
    future = executor.submit(work)
    executor.shutdown(wait=False)
    return future


def _complete(folder: Path, facts: dict[str, Any], limit: int | None, best: str | None) -> None:
    """Flush a checkpoint to the disk, then write its manifest, then remove older checkpoints."""
    with translate_disk_errors(folder), _restored_on_failure(folder):
        Manifest.of(folder, files_in(folder), _reported_fingerprint(folder), **facts).write(folder)
    shutil.rmtree(_replaced(folder), ignore_errors=True)
    if not holds_save(folder.parent):  # without a save, the folder shows the progress of the run
        for name in (REPORT_FILE, CARD_FILE):
            with atomic_path(folder.parent / name) as temporary:
                shutil.copyfile(folder / name, temporary)
    _rotate(str(folder.parent), limit, best)


def _replaced(folder: Path) -> Path:
    """Name the folder that keeps an older checkpoint of the same name until the new one is whole."""
    return folder.with_name(f"{_REPLACED}{folder.name}")


@contextmanager
def _restored_on_failure(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if _replaced(folder).exists():
            os.replace(_replaced(folder), folder)
        raise


def restore_replaced(run_folder: Path) -> None:
    """Put back the checkpoints that a killed process was replacing, unless the new one is whole."""
    for before in run_folder.glob(f"{_REPLACED}*"):
        place = before.with_name(before.name.removeprefix(_REPLACED))
        with suppress(FileNotFoundError):  # another process may do the same
            if (place / MANIFEST_FILE).exists():
                shutil.rmtree(before, ignore_errors=True)
            else:
                shutil.rmtree(place, ignore_errors=True)
                os.replace(before, place)


def holds_save(folder: Path) -> bool:
    """Whether the folder of a run holds a whole save, whose files stay together until the next."""
    return (folder / MANIFEST_FILE).exists()


def link_into(folder: Path, stage: Path, names: Iterable[str]) -> None:
    """Link the files that a folder has into a stage, for the card that is made from them."""
    for name in names:
        if (folder / name).is_file() and not (stage / name).exists():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(folder / name, stage / name)


def add_to_save(stage: Path, folder: Path, names: list[str]) -> None:
    """Add files, a report among them, to the save of the same weights in a folder; else make them a save."""
    before, fingerprint = Manifest.read(folder), _reported_fingerprint(stage)
    if before is None or before.fingerprint != fingerprint:  # of another run
        before = Manifest({}, fingerprint)
    before.with_files(stage, names).move_into_place(stage, folder)


def _rotate(run_folder: str, limit: int | None, best: str | None) -> None:
    """Remove older checkpoints, as [`~transformers.trainer_utils.rotate_checkpoints`] does, but each one atomically."""
    if limit is None or limit <= 0:
        return
    checkpoints = sort_checkpoints(run_folder, use_mtime=True, best_model_checkpoint=best)
    stay = {checkpoints[-1], checkpoints[-1] if best is None else str(Path(best))}
    for checkpoint in checkpoints[: -max(limit, len(stay))]:
        remove_folder(Path(checkpoint))


def _reported_fingerprint(folder: Path) -> str | None:
    return read_json(folder / REPORT_FILE, dict).get("fingerprint")


def _earlier_files(folder: Path, names: list[str], fingerprint: str | None) -> tuple[set[str], set[str]]:
    """
    Find the other files of the previous save: those that stay, as they are of the same weights, and those that go, such
    as a mask or a delta of other weights. A file that has changed since is in neither set.
    """
    try:
        before = Manifest.read(folder)
    except ValueError:
        before = None  # damaged; the new manifest replaces it
    if before is None:
        return set(), set()
    others = before.files.keys() - set(names)
    unchanged = others - before.changed(folder, others).keys()
    is_same = fingerprint is not None and before.fingerprint == fingerprint
    return (unchanged, set()) if is_same else (set(), unchanged)
