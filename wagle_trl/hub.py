"""To the Hub and back: publish a run as a model, a mask or a delta; load what others published."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import transformers  # its names are used as attributes: each takes seconds to import, and few functions need one
from huggingface_hub import HfApi, ModelCard, snapshot_download

from .checkpoint import Checkpoint
from .delta import DELTA_FILE, SparseDelta
from .folders import delta_between
from .mask import MASK_FILE, WeightMask
from .report import PLOT_FILE, plot_mask

# What loads a model, and nothing that executes. Records and reports of a run stay at home: they hold the forget rows
# and the names of local files.
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_PRIVATE_FILES = ("wagle_*", "trainer_state.json")


def load_unlearned(
    pretrained_model_name_or_path: str | os.PathLike,
    *,
    base_model_name_or_path: str | None = None,
    base_revision: str | None = None,
    revision: str | None = None,
    force_download: bool = False,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    **kwargs,
) -> "transformers.PreTrainedModel":
    """
    Load the base model and make it the unlearned one.

    Args:
        pretrained_model_name_or_path (`str`): Repository of a delta, or a folder that holds one.
        base_model_name_or_path (`str`, *optional*): By default the base that the delta names, at its revision.
        base_revision (`str`, *optional*): Revision of the base.
        revision (`str`, *optional*): Of the delta's repository.
        force_download, token, cache_dir, local_files_only (*optional*):
            As in [`~transformers.PreTrainedModel.from_pretrained`], for delta and base.
        **kwargs: To `AutoModelForCausalLM.from_pretrained`, such as `device_map` or `attn_implementation`.

    Returns:
        [`~transformers.PreTrainedModel`]: The unlearned model, in the dtype of the delta.
    """
    hub = {
        "force_download": force_download,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    delta = SparseDelta.from_pretrained(pretrained_model_name_or_path, revision=revision, **hub)
    base = base_model_name_or_path or require_base(delta)
    if base_model_name_or_path is None and base_revision is None:
        base_revision = delta.base_revision
    kwargs |= {"dtype": delta.dtype, "revision": base_revision} | hub
    model = transformers.AutoModelForCausalLM.from_pretrained(base, **kwargs)
    return delta.apply(model)


def require_base(delta: SparseDelta) -> str:
    """Name of the delta's base; a `ValueError` if it names none."""
    if delta.base_model is None:
        raise ValueError("The delta does not say what its base model is; name it.")
    return delta.base_model


def checkpoint_of(name_or_path: str, revision: str | None = None) -> Checkpoint:
    """Weights in a folder, or of a repository of the Hub, which is downloaded without what executes."""
    if not os.path.isdir(name_or_path) and not os.path.isabs(name_or_path):
        name_or_path = snapshot_download(
            name_or_path, revision=revision, allow_patterns=list(MODEL_FILES), ignore_patterns="*/*"
        )
    return Checkpoint(name_or_path)


def base_of(delta: SparseDelta, base_model: str | None) -> Checkpoint:
    """The base `base_model`, or the one that the delta names, at its revision."""
    if base_model is not None:
        return checkpoint_of(base_model)
    return checkpoint_of(require_base(delta), delta.base_revision)


def full_name(repo_id: str, token: str | None = None) -> str:
    """`repo_id` with the namespace of the user whose token it is, if it has none."""
    return repo_id if "/" in repo_id else f"{HfApi(token=token).whoami()['name']}/{repo_id}"


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
) -> str:
    """
    Upload what a run made, in one commit, with its card.

    Args:
        folder (`str` or `os.PathLike`): Output folder of a trainer. Nothing in it changes.
        repo_id (`str`): Repository, such as `"user/name"`; made if need be.
        card ([`~huggingface_hub.ModelCard`]): Its card, see [`~card.model_card`].
        what (`str`, *optional*, defaults to `"model"`):
            `"model"`: all that loads it, and the mask. `"mask"`: the mask. `"delta"`: the mask with the new values of
            the selected weights; without the old ones, which hold what was forgotten.
        base_model (`str`, *optional*): Name of the base on the Hub, where the run has it from a folder.
        private, token, revision, commit_message (*optional*): As in [`~huggingface_hub.HfApi.upload_folder`].

    Returns:
        `str`: URL of the commit.
    """
    folder = Path(folder)
    with TemporaryDirectory(prefix="wagle-push-") as temporary:
        stage = Path(temporary)
        _STAGES[what](folder, stage, base_model)
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        card.save(stage / "README.md")
        message = commit_message or f"Upload {what} with wagle-trl"
        try:
            return api.upload_folder(repo_id=repo_id, folder_path=stage, revision=revision, commit_message=message)
        except RuntimeError as error:  # of an upload that broke off
            raise ConnectionError(f"{error} Push again: what has arrived is not sent again.") from error


def _stage_model(folder: Path, stage: Path, base_model: str | None) -> None:
    """Links to the files of the model, and its mask, if it has one."""
    for path in {path for pattern in MODEL_FILES for path in folder.glob(pattern)}:
        if not any(path.match(private) for private in _PRIVATE_FILES):
            (stage / path.name).symlink_to(path.resolve())
    if not any(stage.glob("*.safetensors")):
        raise ValueError(f"'{folder}' holds no model: there is no .safetensors file of weights.")
    if (folder / MASK_FILE).is_file():
        _stage_mask(folder, stage, base_model)


def _stage_mask(folder: Path, stage: Path, base_model: str | None) -> None:
    mask = _public(WeightMask.load(folder), base_model)
    mask.save(stage)
    plot_mask(mask, stage / PLOT_FILE)


def _stage_delta(folder: Path, stage: Path, base_model: str | None) -> None:
    if (folder / DELTA_FILE).is_file():
        delta = SparseDelta.load(folder)
    else:
        delta = _delta_of(folder, base_model)
    mask = _public(delta.mask, base_model)
    if "base_model" not in mask.info:
        raise ValueError(
            f"The base model '{delta.base_model or '?'}' is not on the Hub; give the name of the one that is."
        )
    SparseDelta(mask, delta.new, delta.dtypes, delta.base_fingerprint).save(stage)
    plot_mask(mask, stage / PLOT_FILE)


def _delta_of(folder: Path, base_model: str | None) -> SparseDelta:
    """Made now, from the base that the run started from."""
    mask = WeightMask.load(folder)
    base = mask.info.get("base_model")
    if base is None or not os.path.isdir(base):
        base = base_model or base
    if base is None:
        raise ValueError(f"The mask in '{folder}' does not say what the base model is; name it.")
    return delta_between(checkpoint_of(base), Checkpoint(folder), mask)


def _public(mask: WeightMask, base_model: str | None) -> WeightMask:
    """The mask with the base's name on the Hub, or without a name if it is a local folder."""
    name = base_model or mask.info.get("base_model")
    info = {key: value for key, value in mask.info.items() if key != "base_model"}
    is_public = name is not None and not os.path.isabs(name) and not os.path.isdir(name)
    return WeightMask(mask.bits, mask.shapes, info | ({"base_model": name} if is_public else {}))


_STAGES = {"model": _stage_model, "mask": _stage_mask, "delta": _stage_delta}
