"""Compact state of a masked optimizer: flat tensors with the selected elements of many parameters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

import wagle_kernels
from wagle_kernels import DENSE_GROUP, INDEX_DENSITY, RANK_GROUP, TILE, Layout

from ..masks.mask import WeightMask

StateBits = Literal[8, 32]

_MIN_NUMEL_8_BIT = 4096  # smaller tensors, and all vectors (norms, biases), keep 32-bit state


@dataclass
class ParameterSlice:
    """The part of an arena that one parameter owns: its number in the layout, and the slice of selected elements."""

    name: str
    parameter: nn.Parameter
    number: int
    selected: slice
    has_gradient: bool = False
    storage: tuple = field(init=False)

    def __post_init__(self):
        self.storage = _storage_of(self.parameter)

    @property
    def weights(self) -> Tensor:
        return self.parameter.detach().view(-1)

    def check(self) -> None:
        """Raise a `ValueError` if the parameter was converted or moved after the arena was allocated."""
        storage = _storage_of(self.parameter)
        if storage != self.storage:
            raise ValueError(
                f"'{self.name}' was {_describe(*self.storage)} when the optimizer was made and is {_describe(*storage)} now; convert "
                "or move the model first, then make the optimizer."
            )


@dataclass
class Arena:
    """
    State of parameters that share dtype, device, number of state bits and coding: one flat tensor per kind of state.
    Every parameter owns a slice of it, in model order, with its selected elements in ascending flat order. The
    optimizer names the moments and updates them.

    Args:
        group (`dict`): Parameter group of the optimizer, with its options.
        layout ([`~wagle_kernels.Layout`]): Positions of the selected elements.
        slices (`list[ParameterSlice]`): Slices of the parameters.
        step (`torch.Tensor`): Number of updates so far, a scalar.
        grad (`torch.Tensor` of shape `(selected,)`, fp32 or the weights' dtype):
            Gradient accumulator. It becomes fp32 when gradients are first added up, unless the group asks for bf16.
        squares (`torch.Tensor` of shape `(tiles,)`, fp32): Sum of the squares of `grad` per tile.
        states (`dict[str, torch.Tensor]`):
            State that lasts from step to step, by kind. Moments have shape `(selected,)` and are fp32, or 8-bit with
            an `..._exponent` of shape `(groups,)`, uint8. bf16 weights also have a `remainder` of shape `(selected,)`,
            int16: the low bits of the fp32 master.
    """

    group: dict[str, Any]
    layout: Layout
    slices: list[ParameterSlice]
    step: Tensor
    grad: Tensor
    squares: Tensor
    states: dict[str, Tensor]

    @classmethod
    def allocate(
        cls,
        group: dict[str, Any],
        parameters: dict[str, nn.Parameter],
        mask: WeightMask,
        moments: Mapping[str, torch.dtype],
    ) -> "Arena":
        """Allocate zeroed state for named parameters that share dtype, device, number of state bits and coding."""
        first = next(iter(parameters.values()))
        packed = [mask.bits[name].to(first.device) for name in parameters]
        layout = Layout.of(packed, [parameter.numel() for parameter in parameters.values()])
        slices = [ParameterSlice(name, p, i, layout.selected_of(i)) for i, (name, p) in enumerate(parameters.items())]

        def zeros(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=first.device)

        selected = layout.num_selected
        if _moment_bits(first, group["state_bits"]) == 8:
            num_groups = int(layout.groups[-1])
            states = {kind: zeros(selected, dtype) for kind, dtype in moments.items()}
            states |= {f"{kind}_exponent": zeros(num_groups, torch.uint8) for kind in moments}
        else:
            states = {kind: zeros(selected) for kind in moments}
        if first.dtype == torch.bfloat16 and group["master"] == "split":
            states["remainder"] = zeros(selected, torch.int16)
        grad, squares = zeros(selected, first.dtype), zeros(layout.tiles[-1])
        return cls(group, layout, slices, torch.tensor(0.0), grad, squares, states)

    @property
    def weights(self) -> list[Tensor]:
        """Flat weights of every parameter."""
        return [item.weights for item in self.slices]

    def state_of(self, item: ParameterSlice) -> dict[str, Tensor]:
        """Views of the state of one parameter, under torch's names."""
        views = {
            kind: values[self.layout.groups_of(item.number) if kind.endswith("_exponent") else item.selected]
            for kind, values in self.states.items()
        }
        return {"step": self.step, **views}

    def prepare_accumulation(self) -> None:
        """Allocate the accumulator in the dtype in which gradients will be added up."""
        if self.group["accumulator_dtype"] == "float32":
            self.accumulate_in_fp32()

    def collect(self, item: ParameterSlice, gradient: Tensor) -> None:
        """Add the selected part of a dense gradient to the accumulator."""
        if gradient.dtype != self.grad.dtype or (item.has_gradient and self.group["accumulator_dtype"] == "float32"):
            self.accumulate_in_fp32()
        wagle_kernels.compress(
            gradient.reshape(-1),
            self.layout,
            item.number,
            self.grad[item.selected],
            accumulate=item.has_gradient,
            squares=self.squares[self.layout.tiles_of(item.number)],
        )
        item.has_gradient = True

    def exchange(self, item: ParameterSlice, values: Tensor) -> None:
        """Exchange the selected weights of a parameter with `values`, in place and bit for bit."""
        held = wagle_kernels.compress(item.weights, self.layout, item.number, torch.empty_like(values))
        wagle_kernels.scatter(item.weights, self.layout, item.number, values)
        values.copy_(held)

    def accumulate_in_fp32(self) -> None:
        """Widen the accumulator to fp32, if it is narrower."""
        self.grad = self.grad.float()

    def squared_norm(self) -> Tensor:
        """Sum of the squares of the collected gradients, in fp64."""
        return self.squares.sum(dtype=torch.float64)

    def is_finite(self, item: ParameterSlice) -> bool:
        """Whether the collected gradient of a parameter is finite, or absent."""
        return not item.has_gradient or bool(self.grad[item.selected].isfinite().all())

    def scale_gradients(self, scale: float) -> None:
        """Multiply the collected gradients by `scale`."""
        self.accumulate_in_fp32()
        self.grad.mul_(scale)
        self.squares.mul_(scale**2)

    def clear(self) -> None:
        """Mark the collected gradients as used, so that the next ones overwrite them."""
        self.squares.zero_()
        for item in self.slices:
            item.has_gradient = False

    def begin_step(self) -> None:
        """Count a step, and set the gradients of parameters that received none to zero."""
        self.step += 1
        for item in self.slices:
            if not item.has_gradient:
                self.grad[item.selected].zero_()


def allocate_arenas(group: dict[str, Any], mask: WeightMask, moments: Mapping[str, torch.dtype]) -> list[Arena]:
    """
    Allocate the arenas of a parameter group: one per dtype, device, number of state bits and coding of positions.

    Args:
        group (`dict`): Parameter group, with `state_bits`, `master` and `accumulator_dtype`.
        mask ([`WeightMask`]): Mask of the selected weights.
        moments (`dict[str, torch.dtype]`): Moments that the update rule keeps per weight, each with its 8-bit dtype:
            int8, or uint8 for moments that are never negative.
    """
    kinds: dict[tuple, dict[str, nn.Parameter]] = {}
    for name, parameter in zip(group["param_names"], group["params"], strict=True):
        _check_parameter(name, parameter, mask)
        is_sparse = mask.num_selected_of(name) <= INDEX_DENSITY * parameter.numel()
        kind = (parameter.dtype, parameter.device, _moment_bits(parameter, group["state_bits"]), is_sparse)
        kinds.setdefault(kind, {})[name] = parameter
    return [Arena.allocate(group, parameters, mask, moments) for parameters in kinds.values()]


def state_bytes(
    parameter: Tensor, num_selected: float, state_bits: StateBits, in_fp32: bool, num_moments: int
) -> dict[str, int]:
    """
    Bytes that [`Arena.allocate`] takes for a parameter, by kind.

    Args:
        parameter (`torch.Tensor`): Weights; only dtype and shape are read.
        num_selected (`float`): Number of selected weights, or its expected value.
        state_bits (`int`): As in [`~optim.masked_adamw.MaskedAdamW`].
        in_fp32 (`bool`): Whether gradients are added up in fp32.
        num_moments (`int`): Number of moments that the update rule keeps per weight.
    """
    tiles = (parameter.numel() + TILE - 1) // TILE
    is_indexed = num_selected <= INDEX_DENSITY * parameter.numel()
    groups = tiles * (math.ceil(num_selected / tiles / RANK_GROUP) if is_indexed else TILE // DENSE_GROUP)
    is_8_bit = _moment_bits(parameter, state_bits) == 8
    is_split = parameter.dtype == torch.bfloat16
    sizes = {
        "positions": (2 * num_selected if is_indexed else tiles * TILE // 8) + 20 * tiles,  # starts, groups, owners
        "moments": num_moments * (num_selected + groups if is_8_bit else 4 * num_selected),
        "remainders": 2 * num_selected if is_split else 0,
        "gradients": num_selected * (4 if in_fp32 else parameter.element_size()) + 4 * tiles,  # with sums of squares
    }
    return {kind: round(size) for kind, size in sizes.items()}


def _storage_of(parameter: Tensor) -> tuple[torch.dtype, torch.device, torch.Size, bool]:
    return parameter.dtype, parameter.device, parameter.shape, parameter.is_contiguous()


def _describe(dtype: torch.dtype, device: torch.device, shape: torch.Size, is_contiguous: bool) -> str:
    return f"{dtype} of shape {tuple(shape)} on {device}" + ("" if is_contiguous else ", not contiguous,")


def _moment_bits(parameter: Tensor, state_bits: StateBits) -> StateBits:
    is_small = parameter.dim() < 2 or parameter.numel() < _MIN_NUMEL_8_BIT
    return 32 if is_small else state_bits


def check_dtype(name: str, parameter: nn.Parameter) -> None:
    """Raise a `ValueError` unless the parameter is bf16 or fp32, the dtypes that can be trained with a mask."""
    if parameter.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"'{name}' is {parameter.dtype}; load the model in bfloat16 or float32.")


def _check_parameter(name: str, parameter: nn.Parameter, mask: WeightMask) -> None:
    if tuple(parameter.shape) != mask.shapes[name]:
        raise ValueError(f"'{name}' has shape {tuple(parameter.shape)}, but its mask has shape {mask.shapes[name]}.")
    check_dtype(name, parameter)
    if not parameter.is_contiguous():
        raise ValueError(f"'{name}' is not contiguous; call `.contiguous()` on it before training.")
