"""Saves that neither a kill nor a full disk can spoil: whole under a manifest, or as it was before."""

import os
import shutil
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ..files import CARD_FILE, REPORT_FILE, atomic_path, staging_folder, writing
from ..manifest import Manifest, files_in
from ..reading import read_json


class WholeSaves:
    """
    Goes before a [`~transformers.Trainer`] in the bases of a class.

    A checkpoint gets its manifest when all of it is on the disk, and older ones are removed only then. What `save_model`
    writes takes its places in the folder when all of it is there; files that an earlier save left there, and that speak of
    other weights, are removed.
    """

    _saves_checkpoint = False

    @abstractmethod
    def write_files(self, folder: Path, *, in_checkpoint: bool, with_delta: bool) -> None:
        """Write the model and all that goes with it, a report among them."""

    @abstractmethod
    def write_card(self, folder: Path) -> list[str]:
        """Write what is made of the other files in a folder; the names of the files."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What resuming from a checkpoint depends on."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As [`~transformers.Trainer.save_model`]."""
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
        if not self.args.should_save:  # another process makes the folder, and takes the files out of it
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
        kept = _without_superseded(folder, names, fingerprint)
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            os.replace(stage / name, folder / name)
        Manifest.of(folder, {*names, *kept, *self.write_card(folder)}, fingerprint).write(folder)

    def _save_checkpoint(self, model, trial) -> None:
        run_folder = self._get_output_dir(trial=trial)
        folder = Path(run_folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        # Transformers would remove older checkpoints before this one is whole
        limit, self.args.save_total_limit, self._saves_checkpoint = self.args.save_total_limit, None, True
        try:
            with writing(folder), self._new_checkpoint(folder):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit, self._saves_checkpoint = limit, False
        if self.args.should_save:
            for name in (REPORT_FILE, CARD_FILE):  # the folder of the run shows how far it is
                with atomic_path(Path(run_folder, name)) as temporary:
                    shutil.copyfile(folder / name, temporary)
            rotate_checkpoints(run_folder, limit, self.state.best_model_checkpoint, use_mtime=True)

    @contextmanager
    def _new_checkpoint(self, folder: Path) -> Iterator[None]:
        """A place for a checkpoint, which is marked as whole on success and removed on failure."""
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off here, or of an earlier one
        self.accelerator.wait_for_everyone()
        try:
            yield
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                names = [*files_in(folder), *self.write_card(folder)]
                Manifest.of(folder, set(names), _reported_fingerprint(folder), **self.facts()).write(folder)
        except BaseException:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise


def update_manifest(folder: Path, names: list[str]) -> None:
    """Note files, a report among them, that were written into a folder after the others, or without any."""
    before, fingerprint = Manifest.read(folder), _reported_fingerprint(folder)
    if before is None or before.fingerprint != fingerprint:  # of another run
        before = Manifest({}, fingerprint)
    before.with_files(folder, names).write(folder)


def _reported_fingerprint(folder: Path) -> str | None:
    return read_json(folder / REPORT_FILE, dict).get("fingerprint")


def _without_superseded(folder: Path, names: list[str], fingerprint: str | None) -> list[str]:
    """
    Files of the save before that stay: all of them if the weights are the same. Otherwise they are removed, such as a mask
    or a delta, but for what is no more as it was saved.
    """
    try:
        before = Manifest.read(folder)
    except ValueError:
        before = None  # damaged; the new one takes its place
    if before is None:
        return []
    others = before.files.keys() - set(names)
    unchanged = others - before.changed(folder, others).keys()
    if fingerprint is not None and before.fingerprint == fingerprint:
        return sorted(unchanged)
    for name in unchanged:
        (folder / name).unlink()
    return []
