"""A trainer's pushes to the Hub: they upload the files that `wagle push` would upload, and nothing else."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, SaveStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from ..files.atomic import temporary_folder, write_json
from ..files.manifest import Manifest
from ..files.model_files import check_inside_folder, matches_any
from ..files.reading import read_json
from ..files.run_folder import CARD_FILE, REFERENCE_FILE
from ..hub.card_file import card_to_publish
from ..hub.publish import commit, earlier_weights
from ..hub.staging import link_or_copy, stage_model
from .trainer_base import TrainerBase

logger = logging.get_logger(__name__)

_RESUME_FILES = (OPTIMIZER_NAME, SCHEDULER_NAME, SCALER_NAME, "rng_state*.pth", REFERENCE_FILE)
_UPLOADS = HfApi()  # one queue for all uploads: they arrive in the order in which they began


class HubPushes(TrainerBase):
    """
    Goes before a [`~transformers.Trainer`] in the bases of a class.

    Transformers would upload whole folders, with the training arguments, which hold the token, and with names of local
    files and folders.
    """

    finish_saves: Callable[[], None]  # of `WholeSaves`, which comes later among the bases
    _checkpoint_to_push: str | None = None

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """
        Save the model and upload it in one commit, with its mask and card. Report, records and options are not uploaded.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`):
                Message of the commit.
            blocking (`bool`, *optional*, defaults to `True`):
                Whether to wait until the upload is finished.
            token (`str`, *optional*):
                Token to use instead of `args.hub_token`.
            revision (`str`, *optional*):
                Branch, which is created if it is missing; by default `args.hub_revision`.
            private (`bool`, *optional*):
                Whether a new repository is private; by default `args.hub_private_repo`.
            **kwargs:
                Arguments of `create_model_card`.

        Returns:
            [`~huggingface_hub.CommitInfo`]: The commit, or a `Future` of it if `blocking=False`; `None` on every
            process but the main one.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:  # the trainer was made without `push_to_hub`
            if private is not None:  # `init_hf_repo` takes it from transformers 5.23 on
                self.args.hub_private_repo = private
            self.init_hf_repo(token=token)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        tags = kwargs.pop("tags", None) or []
        tags = [tags] if isinstance(tags, str) else tags
        self.create_model_card(tags=[*tags, *(self.model.model_tags or [])], **kwargs)
        self._finish_current_push()
        upload = self._prepare_upload(Path(self.args.output_dir), commit_message, token=token, revision=revision)
        return upload() if blocking else _UPLOADS.run_as_future(upload)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._checkpoint_to_push = checkpoint_folder  # pushed later: here transformers has not saved all of it

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        if self._checkpoint_to_push is not None:
            folder, self._checkpoint_to_push = Path(self._checkpoint_to_push), None
            self._push_checkpoint(folder)

    def _push_checkpoint(self, folder: Path) -> None:
        """Push a checkpoint as transformers does: in the background, and not while an earlier push is running."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        self.finish_saves()
        is_pushing = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if is_pushing and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.args.save_strategy == SaveStrategy.STEPS:
            message = f"Training in progress, step {self.state.global_step}"
        else:
            message = f"Training in progress, epoch {int(self.state.epoch)}"
        places = {
            HubStrategy.CHECKPOINT: f"last-{PREFIX_CHECKPOINT_DIR}/",
            HubStrategy.ALL_CHECKPOINTS: f"{folder.name}/",
        }
        job = _UPLOADS.run_as_future(self._prepare_upload(folder, message, place=places.get(strategy)))
        if is_pushing:
            self.push_in_progress.jobs.append(job)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self.push_in_progress = PushInProgress([job])  # pyright: ignore[reportArgumentType]

    def _prepare_upload(
        self,
        folder: Path,
        message: str,
        *,
        token: str | None = None,
        revision: str | None = None,
        place: str | None = None,
    ) -> Callable[[], CommitInfo]:
        """
        Keep the files of a folder that may be published, as they are now.

        Args:
            folder (`pathlib.Path`): The output folder, or a checkpoint.
            message (`str`): Message of the commit.
            token, revision (`str`, *optional*): As in [`push_to_hub`].
            place (`str`, *optional*): Folder in the repository for the files that resume training.

        Returns:
            callable: Uploads these files and removes the kept copies.
        """
        api, revision = HfApi(token=token or self.args.hub_token), revision or self.args.hub_revision
        with ExitStack() as staging:
            stage = staging.enter_context(temporary_folder(Path(self.args.output_dir)))
            model, checkpoint = stage / "model", stage / "checkpoint"
            model.mkdir()
            stage_model(folder, model, None, add=link_or_copy, needs_base=False)
            link_or_copy(card_to_publish(folder), model / CARD_FILE)
            if place is not None:
                checkpoint.mkdir()
                _stage_checkpoint(folder, model, checkpoint)
            kept = staging.pop_all()

        def upload() -> CommitInfo:
            with kept:
                assert self.hub_model_id is not None  # `init_hf_repo` came before any push
                made, replaced = commit(api, self.hub_model_id, model, message, revision=revision)
                if replaced:
                    logger.warning_once(earlier_weights(self.hub_model_id, revision, replaced))
                if place is not None:
                    commit(
                        api, self.hub_model_id, checkpoint, f"{message}, checkpoint", place=place, revision=revision
                    )
                return made

        return upload


def _stage_checkpoint(folder: Path, model: Path, stage: Path) -> None:
    """Fill an empty folder with the files that resume a checkpoint, those of its model included, and their manifest."""
    for path in model.iterdir():
        link_or_copy(path, stage / path.name)
    for path in folder.iterdir():
        if matches_any(path.name, _RESUME_FILES):
            check_inside_folder(path)
            link_or_copy(path, stage / path.name)
    state = read_json(folder / TRAINER_STATE_NAME, dict[str, Any])
    if best := state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = Path(best).name
    write_json(stage / TRAINER_STATE_NAME, state)
    whole, names = Manifest.read(folder), {path.name for path in stage.iterdir()}
    assert whole is not None  # a checkpoint is pushed after its manifest is written
    same = {
        name: entry for name, entry in whole.files.items() if name in names and (stage / name).samefile(folder / name)
    }
    # Without the hash of the rows, which would confirm a guess at them
    manifest = Manifest(same, whole.fingerprint, whole.facts | {"rows": {}})
    manifest.with_files(stage, names - same.keys()).write(stage)
