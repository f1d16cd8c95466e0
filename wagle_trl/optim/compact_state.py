"""Compact state of a masked optimizer: flat tensors that hold the selected elements of many parameters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import wagle_kernels
from wagle_kernels import DENSE_GROUP, INDEX_DENSITY, RANK_GROUP, TILE, Layout

from ..masks.mask import WeightMask

_MIN_NUMEL_8_BIT = 4096  # smaller tensors and vectors (norms, biases) keep 32-bit state


@dataclass
class Slice:
    """A parameter's place in the arena: its number in the layout, and its selected elements."""

    name: str
    parameter: nn.Parameter
    number: int
    selected: slice
    is_collected: bool = False
    form: tuple = field(init=False)

    def __post_init__(self):
        self.form = _form_of(self.parameter)

    @property
    def weights(self) -> Tensor:
        return self.parameter.detach().view(-1)

    def check(self) -> None:
        """Raise a `ValueError` if the parameter is no longer what the arena was laid out for."""
        form = _form_of(self.parameter)
        if form != self.form:
            raise ValueError(
                f"'{self.name}' was {_words(*self.form)} when the optimizer was made and is {_words(*form)} now; convert "
                "or move the model first, then make the optimizer."
            )


@dataclass
class Arena:
    """
    State of parameters that are alike, one flat tensor per kind; every parameter owns a slice, in model order, its
    selected elements in rising flat order. The optimizer says which moments there are, and updates them.

    Args:
        group (`dict`): Parameter group of the optimizer; holds the options.
        layout ([`~wagle_kernels.Layout`]): Positions of the selected elements.
        slices (`list[Slice]`): Parameters.
        step (`torch.Tensor`): Number of updates so far, a scalar.
        grad (`torch.Tensor` of shape `(selected,)`, fp32 or the weights' dtype):
            Gradient accumulator; fp32 from the first time on that gradients are added up, unless the group says bf16.
        squares (`torch.Tensor` of shape `(tiles,)`, fp32): Partial sums of the squares of `grad`, each tensor's in its tiles.
        states (`dict[str, torch.Tensor]`):
            What lasts from step to step, by kind: each moment of shape `(selected,)`, fp32, or 8-bit with an
            `..._exponent` of shape `(groups,)`, uint8; and for bf16 weights `remainder` of shape `(selected,)`, int16, the
            low bits of the fp32 master.
    """

    group: dict[str, Any]
    layout: Layout
    slices: list[Slice]
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
        """Zeroed state for named parameters that are alike in dtype, device, state bits and coding."""
        first = next(iter(parameters.values()))
        packed = [mask.bits[name].to(first.device) for name in parameters]
        layout = Layout.of(packed, [parameter.numel() for parameter in parameters.values()])
        slices = [Slice(name, p, i, layout.selected_of(i)) for i, (name, p) in enumerate(parameters.items())]

        def zeros(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=first.device)

        selected = layout.num_selected
        if _bits_of(first, group["state_bits"]) == 8:
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
        """Weights of the parameters, flat."""
        return [item.weights for item in self.slices]

    def state_of(self, item: Slice) -> dict[str, Tensor]:
        """Views of the state of one parameter, under torch's names."""
        views = {
            kind: values[self.layout.groups_of(item.number) if kind.endswith("_exponent") else item.selected]
            for kind, values in self.states.items()
        }
        return {"step": self.step, **views}

    def prepare_accumulation(self) -> None:
        """Make room for gradients that will be added up."""
        if self.group["accumulator_dtype"] == "float32":
            self.accumulate_in_fp32()

    def collect(self, item: Slice, gradient: Tensor) -> None:
        """Add the selected part of a dense gradient to the accumulator."""
        if gradient.dtype != self.grad.dtype or (item.is_collected and self.group["accumulator_dtype"] == "float32"):
            self.accumulate_in_fp32()
        wagle_kernels.compress(
            gradient.reshape(-1),
            self.layout,
            item.number,
            self.grad[item.selected],
            accumulate=item.is_collected,
            squares=self.squares[self.layout.tiles_of(item.number)],
        )
        item.is_collected = True

    def accumulate_in_fp32(self) -> None:
        """Widen the accumulator, if it is narrower."""
        self.grad = self.grad.float()

    def squared_norm(self) -> Tensor:
        """Sum of the squares of the collected gradients, fp64."""
        return self.squares.sum(dtype=torch.float64)

    def is_finite(self, item: Slice) -> bool:
        """Whether the collected gradient of a parameter is."""
        return not item.is_collected or bool(self.grad[item.selected].isfinite().all())

    def scale_gradients(self, scale: float) -> None:
        """Multiply the collected gradients."""
        self.accumulate_in_fp32()
        self.grad.mul_(scale)
        self.squares.mul_(scale**2)

    def clear(self) -> None:
        """Forget the collected gradients; the next ones overwrite them."""
        self.squares.zero_()
        for item in self.slices:
            item.is_collected = False

    def begin_step(self) -> None:
        """Count a step, in which a gradient that did not come is zero."""
        self.step += 1
        for item in self.slices:
            if not item.is_collected:
                self.grad[item.selected].zero_()


def allocate_arenas(group: dict[str, Any], mask: WeightMask, moments: Mapping[str, torch.dtype]) -> list[Arena]:
    """
    Arenas of a parameter group, one for each dtype, device, number of state bits and coding of positions in it.

    Args:
        group (`dict`): Parameter group, with `state_bits`, `master` and `accumulator_dtype`.
        mask ([`WeightMask`]): The selection.
        moments (`dict[str, torch.dtype]`): What the update rule keeps for each weight, and its dtype in 8 bits: int8, or
            uint8 where it is never negative.
    """
    kinds: dict[tuple, dict[str, nn.Parameter]] = {}
    for name, parameter in zip(group["param_names"], group["params"], strict=True):
        _check_parameter(name, parameter, mask)
        is_sparse = mask.num_selected_of(name) <= INDEX_DENSITY * parameter.numel()
        kind = (parameter.dtype, parameter.device, _bits_of(parameter, group["state_bits"]), is_sparse)
        kinds.setdefault(kind, {})[name] = parameter
    return [Arena.allocate(group, parameters, mask, moments) for parameters in kinds.values()]


def state_bytes(
    parameter: Tensor, num_selected: float, state_bits: int, in_fp32: bool, num_moments: int
) -> dict[str, int]:
    """
    Bytes that [`Arena.allocate`] takes for a parameter, by kind.

    Args:
        parameter (`torch.Tensor`): Weights; only dtype and shape are read.
        num_selected (`float`): Number of selected weights, or how many to expect.
        state_bits (`int`): As in [`~optim.masked_adamw.MaskedAdamW`].
        in_fp32 (`bool`): Whether gradients are added up, in fp32.
        num_moments (`int`): How many the update rule has.
    """
    tiles = (parameter.numel() + TILE - 1) // TILE
    is_indexed = num_selected <= INDEX_DENSITY * parameter.numel()
    groups = tiles * (math.ceil(num_selected / tiles / RANK_GROUP) if is_indexed else TILE // DENSE_GROUP)
    is_8_bit = _bits_of(parameter, state_bits) == 8
    is_split = parameter.dtype == torch.bfloat16
    sizes = {
        "positions": (2 * num_selected if is_indexed else tiles * TILE // 8) + 20 * tiles,  # starts, groups, owners
        "moments": num_moments * (num_selected + groups if is_8_bit else 4 * num_selected),
        "remainders": 2 * num_selected if is_split else 0,
        "gradients": num_selected * (4 if in_fp32 else parameter.element_size()) + 4 * tiles,  # and their squares
    }
    return {kind: round(size) for kind, size in sizes.items()}


def _form_of(parameter: Tensor) -> tuple[torch.dtype, torch.device, torch.Size, bool]:
    return parameter.dtype, parameter.device, parameter.shape, parameter.is_contiguous()


def _words(dtype: torch.dtype, device: torch.device, shape: torch.Size, is_contiguous: bool) -> str:
    return f"{dtype} of shape {tuple(shape)} on {device}" + ("" if is_contiguous else ", not contiguous,")


def _bits_of(parameter: Tensor, state_bits: int) -> int:
    is_small = parameter.dim() < 2 or parameter.numel() < _MIN_NUMEL_8_BIT
    return 32 if is_small else state_bits


def check_dtype(name: str, parameter: nn.Parameter) -> None:
    """Raise a `ValueError` unless a mask can train the parameter: it must be bf16 or fp32."""
    if parameter.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"'{name}' is {parameter.dtype}; load the model in bfloat16 or float32.")


def _check_parameter(name: str, parameter: nn.Parameter, mask: WeightMask) -> None:
    if tuple(parameter.shape) != mask.shapes[name]:
        raise ValueError(f"'{name}' has shape {tuple(parameter.shape)}, its mask {mask.shapes[name]}.")
    check_dtype(name, parameter)
    if not parameter.is_contiguous():
        raise ValueError(f"'{name}' is not contiguous; call `.contiguous()` on it before training.")
