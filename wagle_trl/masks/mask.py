"""`WeightMask`, one bit per weight: storage, algebra and densities. How the bits were chosen does not matter here."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import wagle_kernels

from ..files.hub_file import HubFile
from ..files.run_folder import MASK_FILE
from ..files.tensor_file import TensorFile, first_few, is_name, is_shape, write_tensors
from .anatomy import layer_of, module_of
from .fingerprint import model_fingerprint
from .info import MaskInfo
from .positions import check_bits

FORMAT_VERSION = "1"


class WeightMask(HubFile, tags=["weight-mask", "unlearning"]):
    """
    Selection of weights of a model, one bit per weight.

    Args:
        bits (`dict[str, torch.Tensor]`):
            Packed bits of each parameter in scope, in model order: uint8 of shape `(ceil(numel / 8),)`, bit `j` of
            byte `i` stands for flat element `8 * i + j`. No weight of a parameter without an entry is selected.
        shapes (`dict[str, tuple[int, ...]]`):
            Shape of each of those parameters.
        info ([`~masks.info.MaskInfo`], *optional*):
            Record of how the mask was made (score, gamma, seed, base model, ...). It is saved with the mask.
        counts (`dict[str, int]`, *optional*): Number of selected weights of each parameter, where it is known.

    Example:
    ```python
    >>> mask = WeightMask.from_pretrained("unlearned-model")  # or "user/repository"
    >>> mask.num_selected, mask.density
    >>> (mask & other).jaccard(mask)
    ```
    """

    file_name = MASK_FILE

    def __init__(
        self,
        bits: Mapping[str, Tensor],
        shapes: Mapping[str, Iterable[int]],
        info: MaskInfo | None = None,
        counts: Mapping[str, int] | None = None,
    ):
        self.bits = bits
        self.shapes = {name: tuple(shapes[name]) for name in bits}
        self.info = info or MaskInfo()
        self._counts = dict(counts or {})

    @classmethod
    def from_dense(cls, masks: Mapping[str, Tensor], info: MaskInfo | None = None) -> "WeightMask":
        """Make a mask from one boolean tensor per parameter, in the parameter's shape."""
        bits = {name: wagle_kernels.pack(mask.bool().contiguous().view(-1)) for name, mask in masks.items()}
        return cls(bits, {name: mask.shape for name, mask in masks.items()}, info)

    def dense(self, name: str) -> Tensor:
        """Unpack the mask of a parameter to a boolean tensor of its shape."""
        return wagle_kernels.unpack(self.bits[name], self.numel_of(name)).view(self.shapes[name])

    def numel_of(self, name: str) -> int:
        return math.prod(self.shapes[name])

    def num_selected_of(self, name: str) -> int:
        if name not in self._counts:
            self._counts[name] = wagle_kernels.popcount(self.bits[name])
        return self._counts[name]

    @property
    def selection(self) -> "WeightMask":
        return self

    def public(self, base_model: str | None = None, is_local: bool | None = None) -> "WeightMask":
        return WeightMask(self.bits, self.shapes, self.info.public(base_model, is_local), self._counts)

    @property
    def numel(self) -> int:
        """Number of weights in scope."""
        return sum(self.numel_of(name) for name in self.bits)

    @property
    def num_selected(self) -> int:
        """Number of selected weights."""
        return sum(self.num_selected_of(name) for name in self.bits)

    @property
    def density(self) -> float:
        """Share of the weights in scope that are selected."""
        return self.num_selected / max(1, self.numel)

    # Algebra

    def __and__(self, other: "WeightMask") -> "WeightMask":
        return self._combine(other, torch.bitwise_and)

    def __or__(self, other: "WeightMask") -> "WeightMask":
        return self._combine(other, torch.bitwise_or)

    def __invert__(self) -> "WeightMask":
        """Select the other weights in scope."""
        bits = {name: bits ^ _ones(self.numel_of(name), bits.device) for name, bits in self.bits.items()}
        return WeightMask(bits, self.shapes)

    def __eq__(self, other: object) -> bool:  # no hash: a mask can change
        if not isinstance(other, WeightMask):
            return NotImplemented
        return self.shapes == other.shapes and all(
            torch.equal(bits, other.bits[name].to(bits.device)) for name, bits in self.bits.items()
        )

    def _combine(self, other: "WeightMask", op) -> "WeightMask":
        if self.shapes != other.shapes:
            raise ValueError("The two masks cover different parameters; combine masks of the same model and scope.")
        others = {name: other.bits[name].to(bits.device) for name, bits in self.bits.items()}
        return WeightMask({name: op(bits, others[name]) for name, bits in self.bits.items()}, self.shapes)

    def jaccard(self, other: "WeightMask") -> float:
        """Compute the overlap `|a & b| / |a | b|` with a mask of the same scope; 1.0 for two empty masks."""
        union = (self | other).num_selected
        return (self & other).num_selected / union if union else 1.0

    # Densities

    def density_by(self, group: str) -> dict[str, float]:
        """
        Compute the density of each part of the model.

        Args:
            group (`str`): `"layer"` (the first number in the parameter's name, or `"-"` for the rest of the model),
                `"module"` (the name without layer numbers) or `"parameter"`.
        """
        key = {"layer": layer_of, "module": module_of, "parameter": str}[group]
        counts: dict[str, list[int]] = {}
        for name in self.bits:
            total = counts.setdefault(key(name), [0, 0])
            total[0] += self.num_selected_of(name)
            total[1] += self.numel_of(name)
        return {part: selected / max(1, numel) for part, (selected, numel) in counts.items()}

    # Files

    def save(self, path: str | os.PathLike) -> Path:
        """
        Write the mask atomically.

        Args:
            path (`str` or `os.PathLike`): A `.safetensors` file, or a folder for `wagle_mask.safetensors`.

        Returns:
            `pathlib.Path`: Path of the file.
        """
        path = self.path_in(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = self.info.to_metadata() | {
            "format_version": FORMAT_VERSION,
            "shapes": json.dumps(self.shapes),
            "k": str(self.num_selected),
            "density": repr(self.density),
        }
        specs = {name: (torch.uint8, ((self.numel_of(name) + 7) // 8,)) for name in self.bits}
        write_tensors(path, specs, self.bits.__getitem__, metadata)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "WeightMask":
        """
        Read and check a mask file: names, shapes, byte counts, unused bits and the number of selected weights.

        Args:
            path (`str` or `os.PathLike`): A file, or a folder with `wagle_mask.safetensors`.
        """
        path = cls.existing(path, "mask file")
        file = TensorFile(path)
        header = dict(file.metadata)
        if header.pop("format_version", None) != FORMAT_VERSION:
            raise ValueError(f"{path} is not a wagle mask of format version {FORMAT_VERSION}.")
        text, declared, _ = (header.pop(name, None) for name in ("shapes", "k", "density"))
        info = MaskInfo.from_metadata(header, path)
        shapes = parse_shapes(path, text)
        if set(shapes) != set(file):
            raise ValueError(
                f"{path}: header and tensors name different parameters: {first_few(set(shapes) ^ set(file))}."
            )
        bits = {}
        for name, shape in shapes.items():
            try:
                bits[name] = check_bits(file[name], math.prod(shape))
            except ValueError as error:
                raise ValueError(f"{path}: '{name}' {error}.") from error
        mask = cls(bits, shapes, info)
        if declared != str(mask.num_selected):
            raise ValueError(f"{path}: the header declares k = {declared!r:.40}, the bits select {mask.num_selected}.")
        return mask

    def check(self, model: nn.Module, *, fingerprint: bool = True) -> None:
        """
        Raise a `ValueError` unless the mask was made for `model`.

        Args:
            model (`torch.nn.Module`): Model with the parameters that the mask names.
            fingerprint (`bool`, *optional*, defaults to `True`):
                Whether to compare the weights with those that the mask was made for. A training checkpoint differs
                from its base model, so resuming turns this off.
        """
        parameters = dict(model.named_parameters())
        missing = [name for name in self.bits if name not in parameters]
        if missing:
            raise ValueError(
                f"The mask is for another model: it names parameters this one lacks: {first_few(missing)}."
            )
        for name, shape in self.shapes.items():
            if tuple(parameters[name].shape) != shape:
                raise ValueError(
                    f"The mask is for another model: '{name}' has shape {tuple(parameters[name].shape)} here and "
                    f"{shape} in the mask."
                )
        declared = self.info.fingerprint
        if fingerprint and declared and declared != (actual := model_fingerprint(model)):
            raise ValueError(
                f"The mask was made for other weights (fingerprint {declared[:16]!r}, this model {actual[:16]!r}); load the "
                f"base model {self.info.base_model or '?'!r:.200} or compute a new mask."
            )

    def to(self, device: torch.device | str) -> "WeightMask":
        """Copy the mask with its bits on `device`."""
        return WeightMask({name: bits.to(device) for name, bits in self.bits.items()}, self.shapes, self.info)

    def __repr__(self) -> str:
        return f"WeightMask({self.num_selected:,} of {self.numel:,} weights, {len(self.bits)} parameters)"


def _ones(numel: int, device: torch.device) -> Tensor:
    packed = torch.full(((numel + 7) // 8,), 0xFF, dtype=torch.uint8, device=device)
    if numel % 8:
        packed[-1] = (1 << numel % 8) - 1
    return packed


def parse_shapes(path: Path, text: str | None) -> dict[str, tuple[int, ...]]:
    """Parse the shapes in a file's header; a `ValueError` if they are not valid."""
    try:
        shapes = json.loads(text or "")
        valid = all(is_name(name) and is_shape(shape) for name, shape in shapes.items())
    except (ValueError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise ValueError(f"{path}: the header holds no valid parameter shapes; the file is damaged or hostile.")
    return {name: tuple(shape) for name, shape in shapes.items()}
