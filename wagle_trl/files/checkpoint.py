"""Weights of a model in its folder, as transformers saves them, read without building the model."""

import copy
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import dropwhile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from torch import Tensor

from .atomic import atomic_folder
from .model_files import ADAPTER_CONFIG, check_inside_folder, files_beside_weights, other_names
from .reading import read_json
from .schemas import Config, WeightIndex
from .tensor_file import TensorFile, write_tensors

_FORMAT = {"format": "pt"}  # all that transformers reads of the metadata; the rest may name private folders


class Checkpoint(Mapping[str, Tensor]):
    """
    Weights of a model by name, read on access from `model.safetensors` or the shards of its index.

    Args:
        folder (`str` or `os.PathLike`): Folder of the model. A `ValueError` if its files are damaged.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"No model at '{self.folder}': the folder does not exist.")
        self.files = _files_of_weights(self.folder)
        self._places = {name: place for place, file in self.files.items() for name in file}
        self._names_in_files = {name: name for name in self._places}
        self._config = read_json(self.folder / CONFIG_NAME, Config) if (self.folder / CONFIG_NAME).is_file() else {}
        if self._config.get("transformers_weights") or (self.folder / ADAPTER_CONFIG).exists():
            raise ValueError(
                f"'{self.folder}' makes transformers load other weights, too: {ADAPTER_CONFIG}, or 'transformers_weights' "
                f"in its {CONFIG_NAME}. Load the model with transformers, merge adapters and save it again."
            )

    def named_as(self, names: Iterable[str]) -> "Checkpoint":
        """
        Return the same weights under the names of a model's parameters. Files of multimodal models have names of older
        versions of transformers, without the prefixes `model` and `language_model` or with these in another order.

        Args:
            names (iterable of `str`): Names of some of the model's parameters.
        """
        given = {_without_wrappers(name): name for name in names}
        names_in_files = {given.get(_without_wrappers(own), own): own for own in self._places}
        if len(names_in_files) < len(self._places):  # two of them would be one
            return self
        renamed = copy.copy(self)
        renamed._names_in_files = names_in_files
        return renamed

    def __getitem__(self, name: str) -> Tensor:
        return self._file(name)[self._names_in_files[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names_in_files)

    def __len__(self) -> int:
        return len(self._names_in_files)

    def __contains__(self, name: object) -> bool:
        return name in self._names_in_files

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading the tensor."""
        return self._file(name).shape(self._names_in_files[name])

    def numel(self, name: str) -> int:
        """Return the number of elements of a tensor, without reading the tensor."""
        return math.prod(self.shape(name))

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor, without reading the tensor."""
        return self._file(name).dtype(self._names_in_files[name])

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Read the flat elements `start` to `stop` of a tensor."""
        return self._file(name).read(self._names_in_files[name], start, stop)

    @property
    def load_dtypes(self) -> dict[str, str]:
        """
        Everything that decides in which dtype transformers loads the weights: the dtypes declared by the config, its
        nested configs and the index, by place. Usually there is one. Without one, the dtypes of the weights decide.
        """
        declared = dict(_declared_dtypes(self._config))
        if SAFETENSORS_SINGLE_FILE not in self.files:
            index = read_json(self.folder / SAFETENSORS_INDEX_FILE, WeightIndex)
            declared |= {f"index.{key}": value for key, value in _declared_dtypes(index.get("metadata") or {})}
        if not declared.keys() & {"dtype", "torch_dtype"}:
            dtypes = {name: self.dtype(name) for name in sorted(self) if self.dtype(name).is_floating_point}
            same = len(set(dtypes.values())) == 1
            declared["weights"] = str(next(iter(dtypes.values()))).removeprefix("torch.") if same else str(dtypes)
        return declared

    def _file(self, name: str) -> TensorFile:
        return self.files[self._places[self._names_in_files[name]]]

    def rewrite(
        self,
        folder: str | os.PathLike,
        change: Callable[[str, Tensor], Tensor],
        dtypes: Mapping[str, torch.dtype],
        then: Callable[[Path], Any],
    ) -> Path:
        """
        Write the model with changed weights into a new folder, one tensor at a time, with its config and tokenizer.

        Args:
            folder (`str` or `os.PathLike`): Folder that is new or empty. It appears when everything is written.
            change (callable):
                Function of the name and values of a tensor that returns the values to write, in the same shape.
            dtypes (`dict[str, torch.dtype]`): Dtypes to write. Other tensors keep theirs.
            then (callable): Called with the folder under its temporary name, before it appears; may raise.

        Returns:
            `pathlib.Path`: `folder`.
        """
        others, config = self._other_files(), self._config_text(set(dtypes.values()))
        with atomic_folder(folder) as temporary:
            for path in others:
                shutil.copyfile(path, temporary / path.name)
            if config:
                (temporary / CONFIG_NAME).write_text(config, encoding="utf-8")
            names = {own: name for name, own in self._names_in_files.items()}
            for place, file in self.files.items():
                specs = {own: (dtypes.get(names[own], file.dtype(own)), file.shape(own)) for own in file}
                changed = partial(_changed, file, change, names)
                write_tensors(temporary / place, specs, changed, _FORMAT, progress=f"Writing {place}")
            then(temporary)
        return Path(folder)

    def _other_files(self) -> list[Path]:
        """List the files that load the model with its weights, and stay valid if the weights change."""
        paths = files_beside_weights(self.folder)
        if SAFETENSORS_SINGLE_FILE not in self.files:
            check_inside_folder(self.folder / SAFETENSORS_INDEX_FILE)
            paths.append(self.folder / SAFETENSORS_INDEX_FILE)
        return paths

    @property
    def left_out(self) -> list[str]:
        """Names in the folder that [`rewrite`] does not copy, such as code, a card, or weights in another format."""
        return other_names(self.folder, {*self.files, *(path.name for path in self._other_files())})

    def _config_text(self, dtypes: set[torch.dtype]) -> str | None:
        """Config that declares the dtype of the weights, in JSON; `None` without a config or with several dtypes."""
        if not self._config or len(dtypes) != 1:
            return None
        config = self._config | {"dtype": str(*dtypes).removeprefix("torch.")}
        config.pop("torch_dtype", None)  # the name before transformers 5
        return json.dumps(config, indent=2) + "\n"


def _changed(file: TensorFile, change: Callable[[str, Tensor], Tensor], names: Mapping[str, str], own: str) -> Tensor:
    return change(names[own], file[own])


def _without_wrappers(name: str) -> str:
    """Remove the names of the modules that hold the whole model or its language model."""
    parts = name.split(".")
    return ".".join(dropwhile(lambda part: part in ("model", "language_model"), parts))


def _declared_dtypes(config: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if key in ("dtype", "torch_dtype") and value is not None:  # the latter before transformers 5
            yield f"{place}{key}", str(value).removeprefix("torch.")
        elif isinstance(value, dict):
            yield from _declared_dtypes(value, f"{place}{key}.")


def _files_of_weights(folder: Path) -> dict[str, TensorFile]:
    """Open the files that transformers loads, by name."""
    if (folder / SAFETENSORS_SINGLE_FILE).is_file():
        return {SAFETENSORS_SINGLE_FILE: TensorFile(folder / SAFETENSORS_SINGLE_FILE)}
    if not (folder / SAFETENSORS_INDEX_FILE).is_file():
        raise ValueError(
            f"'{folder}' holds no {SAFETENSORS_SINGLE_FILE} and no {SAFETENSORS_INDEX_FILE}; load the model with "
            "transformers and save it there with `save_pretrained`."
        )
    index = _read_index(folder / SAFETENSORS_INDEX_FILE)
    files = {place: TensorFile(folder / place) for place in dict.fromkeys(index.values())}
    for name, place in index.items():
        if name not in files[place]:
            raise ValueError(f"{folder / SAFETENSORS_INDEX_FILE}: {name[:80]!r} is not in {place}.")
    if len(set().union(*files.values())) < sum(map(len, files.values())):
        raise ValueError(f"{folder / SAFETENSORS_INDEX_FILE}: several files hold the same tensor.")
    return files


def _read_index(path: Path) -> dict[str, str]:
    """Read the name of the file of each tensor."""
    places = read_json(path, WeightIndex)["weight_map"]
    if not places:
        raise ValueError(f"{path} maps no tensor to a file; the file is damaged or hostile.")
    for place in places.values():
        is_name = place.isprintable() and not set(place) & {"/", "\\"} and len(place.encode()) < 256
        if not is_name or place.startswith("wagle_") or not place.endswith(".safetensors"):
            raise ValueError(f"{path} names {place[:80]!r}, which is not a file of weights in the same folder.")
    return places
