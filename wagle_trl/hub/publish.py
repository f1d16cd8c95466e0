"""Publishing a run on the Hub as a model, a mask or a delta, which replaces what was there."""

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.hf_api import RepoFile

from ..deltas.delta import SparseDelta
from ..files.atomic import translate_disk_errors
from ..files.manifest import check_same_run
from ..files.model_files import ADAPTER_CONFIG, WEIGHTS, matches_any, other_names
from ..files.run_folder import CARD_FILE, DELTA_FILE, MASK_FILE, PLOT_FILE
from ..masks.mask import WeightMask
from ..text import printable
from .staging import STAGES

_REPLACED = {"model": (*WEIGHTS, ADAPTER_CONFIG, PLOT_FILE), "mask": (), "delta": ()}


@dataclass(frozen=True)
class Published:
    """
    Result of a push.

    Args:
        commit ([`~huggingface_hub.CommitInfo`]): The commit; as text, its URL.
        replaced (`list[str]`): Weights of the repository that only its earlier commits still hold.
        left_out (`list[str]`): Other files of the folder, which were not uploaded.
    """

    commit: CommitInfo
    replaced: list[str]
    left_out: list[str]


def publish(
    folder: str | os.PathLike,
    repo_id: str,
    card: ModelCard,
    *,
    what: str = "model",
    base_model: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> Published:
    """
    Upload the result of a run with its card, in one commit. A model replaces all weights at the root of the repository.

    Args:
        folder (`str` or `os.PathLike`): Output folder of a trainer. Nothing in it changes.
        repo_id (`str`): Repository, such as `"user/name"`, created if it is missing.
        card ([`~huggingface_hub.ModelCard`]): Its card, see [`~hub.card.model_card`].
        what (`str`, *optional*, defaults to `"model"`):
            `"model"`: the files that load it, and the mask. `"mask"`: the mask. `"delta"`: the mask with the new values of
            the selected weights, without the old ones, which hold what was forgotten.
        base_model (`str`, *optional*): Name of the base on the Hub, if the run loaded it from a folder.
        private, token, revision, commit_message (*optional*): As in [`~huggingface_hub.HfApi.upload_folder`].

    Returns:
        [`Published`]: The commit, and what it replaced and left out.
    """
    folder = Path(folder)
    with TemporaryDirectory(prefix="wagle-push-") as temporary, translate_disk_errors(temporary):
        stage = Path(temporary)
        STAGES[what](folder, stage, base_model)
        check_same_run(folder, _weights_and_mask(folder, stage))
        card.save(stage / CARD_FILE)
        left_out = other_names(folder, {path.name for path in stage.iterdir()})
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        message = commit_message or f"Upload {what} with wagle-trl"
        return Published(*commit(api, repo_id, stage, message, what=what, revision=revision), left_out)


def commit(
    api: HfApi, repo_id: str, stage: Path, message: str, *, what: str = "model", place: str = "", revision: str | None
) -> tuple[CommitInfo, list[str]]:
    """
    Upload a folder in one commit, which also removes the files that become obsolete.

    Args:
        api ([`~huggingface_hub.HfApi`]): The Hub.
        repo_id (`str`): Existing repository.
        stage (`pathlib.Path`): Folder that holds files only.
        message (`str`): Message of the commit.
        what (`str`, *optional*, defaults to `"model"`): As in [`publish`].
        place (`str`, *optional*):
            Folder in the repository, such as `"last-checkpoint/"`, whose other files are removed; by default the root.
        revision (`str`, *optional*): Branch, created if it is missing.

    Returns:
        `tuple[CommitInfo, list[str]]`: The commit, and the weights that it replaced or removed.
    """
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    new = [CommitOperationAdd(f"{place}{path.name}", str(path)) for path in sorted(stage.iterdir())]
    tree = api.list_repo_tree(repo_id, recursive=bool(place), revision=revision)
    old = {file.path: file for file in tree if isinstance(file, RepoFile) and file.path.startswith(place)}
    others = old.keys() - {change.path_in_repo for change in new}
    gone = sorted(others if place else _obsolete(others, api, repo_id, revision, what, stage))
    try:
        # Not `upload_folder`: with Xet that makes several commits, and others would see half a model between them
        changes = [*(CommitOperationDelete(name, is_folder=False) for name in gone), *new]
        made = api.create_commit(repo_id, changes, commit_message=message, revision=revision)
    except RuntimeError as error:  # raised when an upload is interrupted
        raise ConnectionError(f"{error} Push again: files that have arrived are not sent again.") from error
    changed = [change.path_in_repo for change in new if _is_changed(change, old.get(change.path_in_repo))]
    no_weights = (".json", MASK_FILE)
    return made, [name for name in [*gone, *changed] if matches_any(name, WEIGHTS) and not name.endswith(no_weights)]


def _weights_and_mask(folder: Path, stage: Path) -> list[str]:
    """List the files that must be of one run. Deltas may be made later, and are compared with weights and mask."""
    staged = {path.name for path in stage.iterdir() if matches_any(path.name, (*WEIGHTS, ADAPTER_CONFIG))} - {
        DELTA_FILE
    }
    return sorted(staged | ({MASK_FILE} if (folder / MASK_FILE).exists() else set()))


def _is_changed(new: CommitOperationAdd, old: RepoFile | None) -> bool:
    return old is not None and (old.lfs is None or old.lfs.sha256 != new.upload_info.sha256.hex())


def earlier_weights(repo_id: str, revision: str | None, replaced: list[str]) -> str:
    """Explain that a repository still holds weights that were replaced, and how to remove them."""
    branch = "" if revision is None else f', branch="{revision}"'
    return (
        f"Earlier commits of {repo_id} still hold the weights that were there ({printable(', '.join(replaced))}), and what they "
        f'remember. HfApi().super_squash_history("{repo_id}"{branch}) drops those commits; '
        "HfApi().permanently_delete_lfs_files, or the settings of the repository, their files."
    )


def _obsolete(names: set[str], api: HfApi, repo_id: str, revision: str | None, what: str, stage: Path) -> list[str]:
    """List the files at the root of a repository that those of `stage` make obsolete."""
    if what == "delta" and MASK_FILE in names:
        return [] if _is_published(SparseDelta.load(stage).mask, api, repo_id, revision) else [MASK_FILE]
    return [name for name in names if matches_any(name, _REPLACED[what])]


def _is_published(mask: WeightMask, api: HfApi, repo_id: str, revision: str | None) -> bool:
    """Whether the mask in a repository is `mask`."""
    try:
        return WeightMask.from_pretrained(repo_id, revision=revision, token=api.token) == mask
    except ValueError:  # a damaged file
        return False
