"""The weights in a model's folder, as transformers saves them, without building the model."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from torch import Tensor

from .files import atomic_folder, write_json
from .tensor_file import TensorFile, write_tensors


class Checkpoint(Mapping[str, Tensor]):
    """
    Weights of a model by name, each read when it is asked for from `model.safetensors` or the shards of its index.

    Args:
        folder (`str` or `os.PathLike`): Folder of the model. A `ValueError` if its files are not sound.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"No model at '{self.folder}': the folder does not exist.")
        if (self.folder / SAFETENSORS_INDEX_FILE).is_file():
            places = _read_index(self.folder / SAFETENSORS_INDEX_FILE)
            self.files = {place: TensorFile(self.folder / place) for place in dict.fromkeys(places.values())}
        elif (self.folder / SAFETENSORS_SINGLE_FILE).is_file():
            self.files = {SAFETENSORS_SINGLE_FILE: TensorFile(self.folder / SAFETENSORS_SINGLE_FILE)}
            places = dict.fromkeys(self.files[SAFETENSORS_SINGLE_FILE], SAFETENSORS_SINGLE_FILE)
        else:
            raise ValueError(
                f"'{self.folder}' holds no {SAFETENSORS_SINGLE_FILE} and no {SAFETENSORS_INDEX_FILE}; load the model with "
                "transformers and save it there with `save_pretrained`."
            )
        for name, place in places.items():
            if name not in self.files[place]:
                raise ValueError(f"{self.folder / SAFETENSORS_INDEX_FILE}: '{name}' is not in {place}.")
        self._places = places

    def __getitem__(self, name: str) -> Tensor:
        return self._file(name)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight tensor, without reading it."""
        return self._file(name).shape(name)

    def numel(self, name: str) -> int:
        """Number of its weights, without reading it."""
        return math.prod(self.shape(name))

    def dtype(self, name: str) -> torch.dtype:
        """Its dtype, without reading it."""
        return self._file(name).dtype(name)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Its flat elements `start` to `stop`."""
        return self._file(name).read(name, start, stop)

    def every(self, name: str, stride: int, count: int) -> Tensor:
        """At most `count` of its flat elements, `stride` apart."""
        return self._file(name).every(name, stride, count)

    def _file(self, name: str) -> TensorFile:
        return self.files[self._places[name]]

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
            folder (`str` or `os.PathLike`): Folder that does not exist yet, or is empty. It appears when all is written.
            change (callable): Gives, for the name and the values of a tensor, the values to write, in the same shape.
            dtypes (`dict[str, torch.dtype]`): Dtypes to write; of other tensors the one they have.
            then (callable): Called with the folder, still under a temporary name, before it appears; may raise.

        Returns:
            `pathlib.Path`: `folder`.
        """
        with atomic_folder(folder) as temporary:
            for path in self.folder.iterdir():
                if path.is_file() and path.name not in self.files and not _is_of_another_model(path):
                    shutil.copyfile(path, temporary / path.name)
            for place, file in self.files.items():
                specs = {name: (dtypes.get(name, file.dtype(name)), file.shape(name)) for name in file}
                write_tensors(temporary / place, specs, lambda name: change(name, file[name]), file.metadata)  # noqa: B023
            _declare_dtype(temporary / "config.json", set(dtypes.values()))
            then(temporary)
        return Path(folder)


def _is_of_another_model(path: Path) -> bool:
    """Whether a file says what is no longer true when the weights change: card, our own files, pickled weights."""
    is_pickle = path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")
    return is_pickle or path.name == "README.md" or path.name.startswith(("wagle_", "."))


def _read_index(path: Path) -> dict[str, str]:
    """File of every tensor."""
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        sound = bool(places) and all(isinstance(place, str) for place in places.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(f"{path} holds no weight map of tensor names to files; the file is damaged or hostile.")
    for place in places.values():
        if Path(place).name != place or "\\" in place or not place.endswith(".safetensors"):
            raise ValueError(f"{path} names '{place}', which is not a safetensors file in the same folder.")
    return places


def _declare_dtype(config_file: Path, dtypes: set[torch.dtype]) -> None:
    """transformers loads the weights in the dtype that the config declares."""
    if config_file.is_file() and len(dtypes) == 1:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config.pop("torch_dtype", None)  # the name of before transformers 5
        write_json(config_file, config | {"dtype": str(dtypes.pop()).removeprefix("torch.")})
