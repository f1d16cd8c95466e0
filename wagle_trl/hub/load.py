"""Loading models and deltas from the Hub."""

import os
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download

from ..deltas.delta import SparseDelta
from ..files.checkpoint import Checkpoint
from ..files.hub_file import asking_hub, is_hub_name
from ..files.model_class import load_model
from ..files.model_files import MODEL_FILES

if TYPE_CHECKING:
    import transformers


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
    **kwargs: Any,
) -> "transformers.PreTrainedModel":
    """
    Load the base model and apply a delta to it.

    Args:
        pretrained_model_name_or_path (`str`): Repository or folder of the delta.
        base_model_name_or_path (`str`, *optional*): Base model; by default the one that the delta names, at its revision.
        base_revision (`str`, *optional*): Revision of the base; by default the delta's, if it names this base.
        revision (`str`, *optional*): Revision of the delta's repository.
        force_download, token, cache_dir, local_files_only (*optional*):
            As in [`~transformers.PreTrainedModel.from_pretrained`], for delta and base.
        **kwargs:
            Arguments of [`~transformers.PreTrainedModel.from_pretrained`], such as `device_map` or `attn_implementation`.

    Returns:
        [`~transformers.PreTrainedModel`]: The unlearned model, in the dtypes of the delta.
    """
    hub = {
        "force_download": force_download,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    delta = SparseDelta.from_pretrained(pretrained_model_name_or_path, revision=revision, **hub)
    base = base_model_name_or_path or require_base(delta)
    base_revision = base_revision or _revision_of(base, delta)
    if kwargs.setdefault("dtype", delta.dtype) != delta.dtype:
        raise ValueError(
            f"The delta is of weights in {delta.dtype}, got dtype={kwargs['dtype']}; convert the model after."
        )
    model = load_model(base, revision=base_revision, **hub, **kwargs)
    return delta.apply(delta.cast(model))


def require_base(delta: SparseDelta) -> str:
    """Name of the delta's base. A delta that names none raises a `ValueError`."""
    if delta.base_model is None:
        raise ValueError("The delta does not name its base model; name it.")
    return delta.base_model


def checkpoint_of(name_or_path: str, revision: str | None = None) -> Checkpoint:
    """Open the weights of a folder or of a repository on the Hub, which is downloaded without its code files."""
    if os.path.isdir(name_or_path) or not is_hub_name(name_or_path):
        return Checkpoint(name_or_path)
    with asking_hub(name_or_path):
        folder = snapshot_download(
            name_or_path, revision=revision, allow_patterns=list(MODEL_FILES), ignore_patterns="*/*"
        )
    return Checkpoint(folder)


def base_of(delta: SparseDelta, base_model: str | None) -> Checkpoint:
    """Open the base of a delta: `base_model`, or by default the one that the delta names, at its revision."""
    name = base_model or require_base(delta)
    try:
        return checkpoint_of(name, _revision_of(name, delta))
    except FileNotFoundError as error:
        if base_model is not None:
            raise
        # A run notes its base as it was given, often relative to a folder that is not this one
        about = "It is the base that the delta names; say where it is, as in `wagle apply DELTA BASE`."
        raise FileNotFoundError(f"{str(error).rstrip('.')}. {about}") from error


def _revision_of(base_model: str, delta: SparseDelta) -> str | None:
    return delta.base_revision if base_model == delta.base_model else None
