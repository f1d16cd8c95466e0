"""`SparseDelta`: the changes that unlearning made, as new values and positions of the selected weights."""

import copy
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..files.hub_file import HubFile
from ..files.run_folder import DELTA_FILE
from ..files.tensor_file import DTYPE_NAMES, LazyTensors, bit_patterns, first_few, write_tensors
from ..masks.fingerprint import fingerprint_of
from ..masks.mask import WeightMask
from ..masks.positions import CODINGS, encode
from ..masks.values import put, take
from .delta_file import FORMAT_VERSION, DeltaFile

Model = TypeVar("Model", bound=nn.Module)


class SparseDelta(HubFile, tags=["sparse-delta", "unlearning"]):
    """
    New values of the selected weights, which turn the base into the unlearned model, bit for bit.

    A delta from [`load`] reads each tensor only when it is used, so that large deltas take little memory.

    Args:
        mask ([`WeightMask`]): Mask of the weights that the values belong to.
        new (`dict[str, torch.Tensor]`):
            Values after unlearning for every parameter of the mask, of shape `(selected,)`, in ascending flat order.
        dtypes (`dict[str, torch.dtype]`):
            Dtype of every weight tensor of the unlearned model, in model order, selected or not. Tensors of a base in
            another dtype are rounded to it.
        base_fingerprint (`str`): [`~masks.fingerprint.fingerprint`] of the base, over these tensors in these dtypes.
        old (`dict[str, torch.Tensor]`, *optional*):
            Values before unlearning, for [`undo`]. They hold what was forgotten, so do not publish them.

    Example:
    ```python
    >>> delta = SparseDelta.from_pretrained("user/unlearned-delta")
    >>> delta.apply(model)  # in place; `model` is the base
    ```
    """

    file_name = DELTA_FILE

    def __init__(
        self,
        mask: WeightMask,
        new: Mapping[str, Tensor],
        dtypes: Mapping[str, torch.dtype],
        base_fingerprint: str,
        old: Mapping[str, Tensor] | None = None,
    ):
        self.mask = mask
        self.new = new
        self.dtypes = dict(dtypes)
        self.base_fingerprint = base_fingerprint
        self.old = old
        self._codes: Mapping[str, tuple[str, Tensor]] | None = (
            None  # positions as the file encodes them, if there is one
        )

    @property
    def base_model(self) -> str | None:
        """Name of the base model, or `None` if it is unknown."""
        return self.mask.info.base_model or None

    @property
    def base_revision(self) -> str | None:
        """Commit of the base model, or `None` if it is unknown."""
        return self.mask.info.known_revision

    @property
    def selection(self) -> WeightMask:
        return self.mask

    def public(self, base_model: str | None = None, is_local: bool | None = None) -> "SparseDelta":
        """Copy to publish: without the old values, which hold what was forgotten."""
        delta = copy.copy(self)
        delta.mask, delta.old = self.mask.public(base_model, is_local), None
        return delta

    @property
    def num_selected(self) -> int:
        """Number of selected weights."""
        return self.mask.num_selected

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that can hold all weights: their common dtype, or a wider one if they differ."""
        return functools.reduce(torch.promote_types, set(self.dtypes.values()))

    def cast(self, model: Model) -> Model:
        """Cast the weights of a model to the dtypes of the unlearned model, in place."""
        for name, values in model.state_dict(keep_vars=True).items():
            values.data = values.data.to(self.dtypes.get(name, values.dtype))
        return model

    @classmethod
    def from_model(
        cls, model: nn.Module, mask: WeightMask, base_fingerprint: str, base: nn.Module | None = None
    ) -> "SparseDelta":
        """
        Take the delta from a model that was trained with a mask.

        Args:
            model (`torch.nn.Module`): Unlearned model.
            mask ([`WeightMask`]): Mask that it was trained with.
            base_fingerprint (`str`): [`weights_fingerprint`] of the model before unlearning.
            base (`torch.nn.Module`, *optional*): Model before unlearning, for the old values.
        """
        mask.check(model, fingerprint=False)
        parameters = dict(model.named_parameters())
        new = {name: take(parameters[name], mask.bits[name]) for name in mask.bits}
        old = None
        if base is not None:
            before = dict(base.named_parameters())
            old = {name: take(before[name].to(new[name].dtype), mask.bits[name]) for name in mask.bits}
        return cls(mask, new, {n: w.dtype for n, w in saved_weights(model).items()}, base_fingerprint, old)

    def apply(self, model: Model) -> Model:
        """
        Turn the base into the unlearned model, in place.

        Args:
            model (`torch.nn.Module`): Base model, in the dtypes of the unlearned model.

        Returns:
            `torch.nn.Module`: `model`.
        """
        weights = self._checked_weights(model)
        if others := saved_weights(model).keys() - self.dtypes.keys():  # the fingerprint does not cover these
            raise ValueError(f"The delta is for another base, which has no {first_few(others)}.")
        self.check_fingerprint(fingerprint_of({name: weights[name] for name in self.dtypes}))
        return self._put(model, self.new)

    def undo(self, model: Model) -> Model:
        """Turn the unlearned model back into the base, in place. The delta must hold the old values."""
        old = self.check_has_old()
        self._checked_weights(model)
        for name in self.mask.bits:
            self.check_unlearned(name, take(model.get_parameter(name), self.mask.bits[name]))
        return self._put(model, old)

    def _put(self, model: Model, values: Mapping[str, Tensor]) -> Model:
        for name in self.mask.bits:
            put(model.get_parameter(name), self.mask.bits[name], values[name])
        return model

    # Checks

    def check_fingerprint(self, actual: str) -> None:
        """Raise a `ValueError` unless `actual`, the fingerprint of some weights in the delta's dtypes, is the base's."""
        if actual != self.base_fingerprint:
            raise ValueError(
                f"The delta is for another base: {self.base_model or '?'!r:.200} with fingerprint "
                f"{self.base_fingerprint[:16]!r}, but these weights have {actual[:16]!r}."
            )

    def check_unlearned(self, name: str, values: Tensor) -> None:
        """Raise a `ValueError` unless the selected values of a parameter are those of the unlearned model, bit by bit."""
        new = self.new[name]
        if values.dtype != new.dtype or not torch.equal(bit_patterns(values.cpu()), bit_patterns(new.cpu())):
            raise ValueError(f"'{name}' does not hold the values of this delta; it was not applied to these weights.")

    def check_has_old(self) -> Mapping[str, Tensor]:
        """Return the old values. Raise a `ValueError` if the delta has none, so that it cannot be undone."""
        if self.old is None:
            raise ValueError(
                f"The delta holds no old values; load the base model {self.base_model or '?'!r:.200} instead."
            )
        return self.old

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise a `ValueError` unless `shapes`, by name of the weight, has all parameters of the delta in its shapes."""
        missing = [name for name in self.dtypes if name not in shapes]
        if missing:
            raise ValueError(
                f"The delta is for another model, or these files use other names for tensors: {first_few(missing)} missing."
            )
        for name, shape in self.mask.shapes.items():
            if tuple(shapes[name]) != shape:
                raise ValueError(
                    f"The delta is for another model: '{name}' has shape {tuple(shapes[name])} here and {shape} there."
                )

    def _checked_weights(self, model: nn.Module) -> dict[str, Tensor]:
        weights = model.state_dict()  # like files, it has buffers, and tied weights under each of their names
        self.check_shapes({name: tuple(values.shape) for name, values in weights.items()})
        for name, dtype in self.dtypes.items():
            if weights[name].dtype != dtype:
                raise ValueError(
                    f"'{name}' is {weights[name].dtype}, but {dtype} in the delta; load the model in {dtype}."
                )
        if buffers := self.mask.bits.keys() - dict(model.named_parameters(remove_duplicate=False)).keys():
            raise ValueError(f"The delta changes {first_few(buffers)}, which the model does not have as parameters.")
        return weights

    # Files

    def save(self, path: str | os.PathLike) -> Path:
        """
        Write the delta atomically, one tensor at a time.

        Args:
            path (`str` or `os.PathLike`): A `.safetensors` file, or a folder for `wagle_delta.safetensors`.

        Returns:
            `pathlib.Path`: The file written.
        """
        path = self.path_in(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        codes = self._codes or {name: encode(bits, self.mask.numel_of(name)) for name, bits in self.mask.bits.items()}
        specs = {}
        for name in self.mask.bits:
            coding, code = codes[name]
            specs[f"{coding}:{name}"] = (torch.uint8, tuple(code.shape))
            for kind in self._values():
                specs[f"{kind}:{name}"] = (self.dtypes[name], (self.mask.num_selected_of(name),))
        metadata = self.mask.info.to_metadata() | {
            "format": "pt",
            "format_version": FORMAT_VERSION,
            "shapes": json.dumps(self.mask.shapes),
            "dtypes": json.dumps({name: DTYPE_NAMES[dtype] for name, dtype in self.dtypes.items()}),
            "k": str(self.num_selected),
            "base_fingerprint": self.base_fingerprint,
        }

        def read(key: str) -> Tensor:
            kind, name = key.split(":", 1)
            return codes[name][1] if kind in CODINGS else self._values()[kind][name]

        write_tensors(path, specs, read, metadata)
        return path

    def _values(self) -> dict[str, Mapping[str, Tensor]]:
        return {"new": self.new} | ({} if self.old is None else {"old": self.old})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SparseDelta":
        """
        Open a delta, and check all of it except the values themselves.

        Args:
            path (`str` or `os.PathLike`): A file, or a folder that holds `wagle_delta.safetensors`.
        """
        file = DeltaFile(cls.existing(path, "delta"))
        mask = WeightMask(LazyTensors(file.shapes, file.bits), file.shapes, file.info, file.counts)
        new, old = (
            LazyTensors(file.shapes, lambda name, kind=kind: file[f"{kind}:{name}"]) for kind in ("new", "old")
        )
        delta = cls(mask, new, file.dtypes, file.base_fingerprint, old if file.has_old else None)
        delta._codes = LazyTensors(file.shapes, file.code)
        return delta

    def __repr__(self) -> str:
        undo = ", can be undone" if self.old is not None else ""
        return f"SparseDelta({self.num_selected:,} of {self.mask.numel:,} weights of {self.base_model or '?'!r}{undo})"


def saved_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, as transformers saves them: tied weights only under their first name."""
    named: dict[int, tuple[str, Tensor]] = {}
    for name, values in model.state_dict(keep_vars=True).items():
        named.setdefault(id(values), (name, values.detach()))
    return dict(named.values())


def weights_fingerprint(model: nn.Module) -> str:
    """Fingerprint of a model as the base of deltas: of all tensors that transformers saves, in their dtypes."""
    return fingerprint_of(saved_weights(model))
