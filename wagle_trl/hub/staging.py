"""The files of a run that may be published: its model, mask or delta, without the paths of its owner's folders."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE

from ..attribution.report import plot_mask
from ..comparison.runs import read_run
from ..deltas.delta import SparseDelta
from ..deltas.on_disk import delta_between
from ..deltas.verification import check_mask
from ..files.atomic import write_json
from ..files.checkpoint import Checkpoint
from ..files.hub_file import public_base
from ..files.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_inside_folder, files_beside_weights
from ..files.reading import read_json
from ..files.run_folder import DELTA_FILE, MASK_FILE, PLOT_FILE
from ..files.schemas import AdapterConfig
from ..masks.mask import WeightMask
from ..masks.values import take
from .load import checkpoint_of

# Keys under which transformers before version 5 wrote the path that a model or a tokenizer was loaded from
_PATH_KEYS = {
    "_name_or_path",
    "merges_file",
    "name_or_path",
    "special_tokens_map_file",
    "spm_file",
    "tokenizer_file",
    "vocab_file",
}

Link = Callable[[Path, Path], None]


def symlink(source: Path, place: Path) -> None:
    """Link a file to a second place, where it lasts as long as in the first."""
    place.symlink_to(source.resolve())


def link_or_copy(source: Path, place: Path) -> None:
    """Keep a file in a second place, whatever happens to the first."""
    try:
        os.link(source.resolve(), place)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, place)


def stage_model(
    folder: Path, stage: Path, base_model: str | None, *, add: Link = symlink, needs_base: bool = True
) -> None:
    """
    Fill an empty folder with the files that load a model, and its mask, if it has one.

    Args:
        folder (`pathlib.Path`): Output folder of a trainer, or a checkpoint.
        stage (`pathlib.Path`): The empty folder.
        base_model (`str`, *optional*): Name of the base on the Hub.
        add (callable, *optional*): [`symlink`] or [`link_or_copy`].
        needs_base (`bool`, *optional*, defaults to `True`):
            Whether adapters raise a `ValueError` if their base is not known to be on the Hub. Otherwise they then name none.
    """
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    for path in [*files_beside_weights(folder), *(_adapter_files if is_adapter else _weights_of)(folder)]:
        check_inside_folder(path)
        add(path, stage / path.name)
    for path in stage.glob("*.json"):
        if path.name.endswith("config.json") and path.name != ADAPTER_CONFIG:
            _drop_paths(path)
    if is_adapter:
        _name_base_of_adapters(folder, stage / ADAPTER_CONFIG, base_model, needs_base)
    if (folder / MASK_FILE).is_file():
        stage_mask(folder, stage, base_model)


def _drop_paths(path: Path) -> None:
    """Replace a config that names local paths by one without them."""
    content = read_json(path, dict[str, Any])
    public = {key: value for key, value in content.items() if key not in _PATH_KEYS}
    if public.keys() != content.keys():
        write_json(path, public)


def _weights_of(folder: Path) -> list[Path]:
    """List the weights that transformers loads, without those that an earlier model left beside them."""
    names = list(Checkpoint(folder).files)
    return [
        folder / name for name in (names if SAFETENSORS_SINGLE_FILE in names else [SAFETENSORS_INDEX_FILE, *names])
    ]


def _adapter_files(folder: Path) -> list[Path]:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"'{folder}' holds {ADAPTER_CONFIG}, but no {ADAPTER_WEIGHTS}.")
    if any((folder / name).is_file() for name in (SAFETENSORS_SINGLE_FILE, SAFETENSORS_INDEX_FILE)):
        raise ValueError(
            f"'{folder}' holds a model and adapters; keep those that the run made and move the others away."
        )
    return [folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS]


def _name_base_of_adapters(folder: Path, path: Path, base_model: str | None, needs_base: bool) -> None:
    """Replace a config of PEFT by one that names the base by its name on the Hub."""
    config = read_json(path, AdapterConfig)
    name = config.get("base_model_name_or_path")
    is_local = _is_local(folder, name)
    public, revision = public_base(name or None, config.get("revision") or None, base_model, is_local)
    if needs_base:
        _check_on_hub(public, name)
    write_json(path, config | {"base_model_name_or_path": public, "revision": revision})


def stage_mask(folder: Path, stage: Path, base_model: str | None) -> None:
    """Write the mask, without local paths, and its picture into `stage`. The arguments are those of [`stage_model`]."""
    check_inside_folder(folder / MASK_FILE)
    mask = WeightMask.load(folder)
    mask = mask.public(base_model, _is_local(folder, mask.info.base_model))
    mask.save(stage)
    plot_mask(mask, stage / PLOT_FILE)


def stage_delta(folder: Path, stage: Path, base_model: str | None) -> None:
    """Write the delta and its picture likewise. A delta that is missing is made."""
    for name in (DELTA_FILE, MASK_FILE):
        check_inside_folder(folder / name)
    delta = _delta_of(folder, base_model)
    public = delta.public(base_model, _is_local(folder, delta.base_model))
    _check_on_hub(public.base_model, delta.base_model)
    public.save(stage)
    plot_mask(public.mask, stage / PLOT_FILE)


def _delta_of(folder: Path, base_model: str | None) -> SparseDelta:
    """Load the delta in the folder, or make one, if there is none of this mask and these weights."""
    if not (folder / DELTA_FILE).is_file():
        return _make_delta(folder, base_model)
    delta = SparseDelta.load(folder)
    if _is_current(delta, folder):
        return delta
    try:
        return _make_delta(folder, base_model)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"'{folder / DELTA_FILE}' is not of the mask and weights beside it, and no new delta can be made: {error}"
        ) from error


def _is_current(delta: SparseDelta, folder: Path) -> bool:
    """Whether a delta matches the mask and the weights in a folder, if there are any."""
    if (folder / MASK_FILE).is_file() and WeightMask.load(folder) != delta.mask:
        return False
    if not any(folder.glob("model*.safetensors")):
        return True
    weights = Checkpoint(folder).named_as(delta.mask.bits)
    try:
        check_mask(delta.mask, weights)
        for name, bits in delta.mask.bits.items():
            delta.check_unlearned(name, take(weights[name], bits))
    except ValueError:
        return False
    return True


def _make_delta(folder: Path, base_model: str | None) -> SparseDelta:
    """Make the delta from the base that the run started from."""
    mask = WeightMask.load(folder)
    recorded = mask.info.base_model
    if recorded and os.path.isdir(recorded):
        base = Checkpoint(recorded)
    else:
        public = mask.info.public(base_model, _is_local(folder, recorded))
        base = checkpoint_of(_check_on_hub(public.base_model, recorded), public.known_revision)
    return delta_between(base, Checkpoint(folder), mask)


def _is_local(folder: Path, base_model: str | None) -> bool | None:
    """Whether the run loaded this base from a folder, by its report; `None` if the report does not say."""
    report = read_run(folder).training
    return report.get("base_is_local") if report.get("base_model") == base_model else None


def _check_on_hub(name: str | None, recorded: str | None) -> str:
    if name is None:
        raise ValueError(
            f"The base model '{recorded or '?'}' is not known to be on the Hub; give the name of the one that is."
        )
    return name


STAGES = {"model": stage_model, "mask": stage_mask, "delta": stage_delta}
