"""To the Hub and back: publish a run as a model, a mask or a delta; load what others published."""

import json
import os
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory

import transformers  # its names are used as attributes: each takes seconds to import, and few functions need one
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, snapshot_download

from .checkpoint import Checkpoint
from .comparison.runs import read_run
from .delta import DELTA_FILE, SparseDelta
from .files import CARD_FILE, write_json
from .folders import delta_between
from .hub_file import asking_hub, is_hub_name, known_revision, public_info
from .mask import MASK_FILE, WeightMask
from .report import PLOT_FILE, plot_mask
from .selected import take
from .verification import check_mask

_ADAPTER_CONFIG = "adapter_config.json"
# What loads a model, under the names that transformers, tokenizers and PEFT give it. Any other file may be one of the
# user's own, such as the rows to forget, or something that executes.
MODEL_FILES = (
    "config.json generation_config.json processor_config.json *preprocessor_config.json "
    "model.safetensors model-*-of-*.safetensors model.safetensors.index.json "
    f"{_ADAPTER_CONFIG} adapter_model.safetensors "
    "tokenizer.json tokenizer_config.json tokenizer*.model special_tokens_map.json added_tokens.json "
    "vocab.json vocab.txt merges.txt spiece.model sentencepiece*.model chat_template.json chat_template.jinja"
).split()
# Weights in any form: what is left of others would be loaded instead of new ones, or keep what was forgotten.
_WEIGHTS = (
    "*.safetensors",
    "*.bin",
    "*.gguf",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.index.json",
)
_REPLACED = {"model": (*_WEIGHTS, _ADAPTER_CONFIG, PLOT_FILE), "mask": (), "delta": ()}


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
        base_revision (`str`, *optional*): Revision of the base; by default the delta's, if it names this base.
        revision (`str`, *optional*): Of the delta's repository.
        force_download, token, cache_dir, local_files_only (*optional*):
            As in [`~transformers.PreTrainedModel.from_pretrained`], for delta and base.
        **kwargs: To `AutoModelForCausalLM.from_pretrained`, such as `device_map` or `attn_implementation`.

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
    model = transformers.AutoModelForCausalLM.from_pretrained(base, revision=base_revision, **hub, **kwargs)
    return delta.apply(delta.cast(model))


def require_base(delta: SparseDelta) -> str:
    """Name of the delta's base; a `ValueError` if it names none."""
    if delta.base_model is None:
        raise ValueError("The delta does not say what its base model is; name it.")
    return delta.base_model


def checkpoint_of(name_or_path: str, revision: str | None = None) -> Checkpoint:
    """Weights in a folder, or of a repository of the Hub, which is downloaded without what executes."""
    if os.path.isdir(name_or_path) or not is_hub_name(name_or_path):
        return Checkpoint(name_or_path)
    with asking_hub(name_or_path):
        folder = snapshot_download(name_or_path, revision=revision, allow_patterns=MODEL_FILES, ignore_patterns="*/*")
    return Checkpoint(folder)


def base_of(delta: SparseDelta, base_model: str | None) -> Checkpoint:
    """The base `base_model`, by default the one that the delta names; that one at its revision."""
    name = base_model or require_base(delta)
    return checkpoint_of(name, _revision_of(name, delta))


def _revision_of(base_model: str, delta: SparseDelta) -> str | None:
    return delta.base_revision if base_model == delta.base_model else None


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
    Upload what a run made, in one commit, with its card. A model takes the place of all weights that the repository
    holds at its root.

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
        card.save(stage / CARD_FILE)
        out_of_date = _out_of_date(api, repo_id, revision, what, stage)
        # Not `upload_folder`: with Xet that makes several commits, and others would see half a model between them
        changes = [CommitOperationDelete(name, is_folder=False) for name in out_of_date]
        changes += [CommitOperationAdd(path.name, str(path)) for path in sorted(stage.iterdir())]
        message = commit_message or f"Upload {what} with wagle-trl"
        try:
            return api.create_commit(repo_id, changes, commit_message=message, revision=revision)
        except RuntimeError as error:  # of an upload that broke off
            raise ConnectionError(f"{error} Push again: what has arrived is not sent again.") from error


def _out_of_date(api: HfApi, repo_id: str, revision: str | None, what: str, stage: Path) -> list[str]:
    """Files at the root of a repository that must go when those of `stage` come."""
    new = {path.name for path in stage.iterdir()}
    old = [name for name in api.list_repo_files(repo_id, revision=revision) if "/" not in name and name not in new]
    if what == "delta" and MASK_FILE in old:
        return [] if _is_published(SparseDelta.load(stage).mask, api, repo_id, revision) else [MASK_FILE]
    return [name for name in old if any(fnmatchcase(name, pattern) for pattern in _REPLACED[what])]


def _is_published(mask: WeightMask, api: HfApi, repo_id: str, revision: str | None) -> bool:
    """Whether the mask in a repository is `mask`."""
    try:
        return WeightMask.from_pretrained(repo_id, revision=revision, token=api.token) == mask
    except ValueError:  # a damaged file
        return False


# What goes up, by kind


def _stage_model(folder: Path, stage: Path, base_model: str | None) -> None:
    """Links to the files of the model, and its mask, if it has one."""
    for path in folder.glob("*"):
        if any(fnmatchcase(path.name, pattern) for pattern in MODEL_FILES):
            (stage / path.name).symlink_to(path.resolve())
    if not any(stage.glob("*.safetensors")):
        raise ValueError(f"'{folder}' holds no model: there is no .safetensors file of weights.")
    if (stage / _ADAPTER_CONFIG).exists():
        _name_base_of_adapters(folder, stage / _ADAPTER_CONFIG, base_model)
    if (folder / MASK_FILE).is_file():
        _stage_mask(folder, stage, base_model)


def _name_base_of_adapters(folder: Path, path: Path, base_model: str | None) -> None:
    """Replace the link to a config of PEFT by one that names the base as others can load it."""
    config = json.loads(path.read_text(encoding="utf-8"))
    name = config.get("base_model_name_or_path")
    recorded = {"base_model": name, "base_revision": config.get("revision")}
    public = public_info({key: value for key, value in recorded.items() if value}, base_model, _is_local(folder, name))
    _check_on_hub(public.get("base_model"), name)
    names = {"base_model_name_or_path": public["base_model"], "revision": public.get("base_revision")}
    write_json(path, config | names)


def _stage_mask(folder: Path, stage: Path, base_model: str | None) -> None:
    mask = WeightMask.load(folder)
    mask.public(base_model, _is_local(folder, mask.info.get("base_model"))).save(stage)
    plot_mask(mask, stage / PLOT_FILE)


def _stage_delta(folder: Path, stage: Path, base_model: str | None) -> None:
    delta = _delta_of(folder, base_model)
    public = delta.public(base_model, _is_local(folder, delta.base_model))
    _check_on_hub(public.base_model, delta.base_model)
    public.save(stage)
    plot_mask(public.mask, stage / PLOT_FILE)


def _delta_of(folder: Path, base_model: str | None) -> SparseDelta:
    """The delta in the folder, or one made now, if there is none of this mask and these weights."""
    if not (folder / DELTA_FILE).is_file():
        return _made_delta(folder, base_model)
    delta = SparseDelta.load(folder)
    if _is_current(delta, folder):
        return delta
    try:
        return _made_delta(folder, base_model)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"'{folder / DELTA_FILE}' is not of the mask and weights beside it, and no new one can be made: {error}"
        ) from error


def _is_current(delta: SparseDelta, folder: Path) -> bool:
    """Whether a delta has the mask and the weights beside it, as far as there are any."""
    if (folder / MASK_FILE).is_file() and WeightMask.load(folder) != delta.mask:
        return False
    if not any(folder.glob("model*.safetensors")):
        return True
    weights = Checkpoint(folder)
    try:
        check_mask(delta.mask, weights)
        for name, bits in delta.mask.bits.items():
            delta.check_unlearned(name, take(weights[name], bits))
    except ValueError:
        return False
    return True


def _made_delta(folder: Path, base_model: str | None) -> SparseDelta:
    """Made now, from the base that the run started from."""
    mask = WeightMask.load(folder)
    recorded = mask.info.get("base_model")
    if recorded and os.path.isdir(recorded):
        base = Checkpoint(recorded)
    else:
        public = public_info(mask.info, base_model, _is_local(folder, recorded))
        _check_on_hub(public.get("base_model"), recorded)
        base = checkpoint_of(public["base_model"], known_revision(public))
    return delta_between(base, Checkpoint(folder), mask)


def _is_local(folder: Path, base_model: str | None) -> bool | None:
    """Whether the report in a folder says that the run took this base from a folder; `None` if it does not say."""
    report = read_run(folder).training
    return report.get("base_is_local") if report.get("base_model") == base_model else None


def _check_on_hub(name: str | None, recorded: str | None) -> None:
    if name is None:
        raise ValueError(
            f"The base model '{recorded or '?'}' is not known to be on the Hub; give the name of the one that is."
        )


_STAGES = {"model": _stage_model, "mask": _stage_mask, "delta": _stage_delta}
