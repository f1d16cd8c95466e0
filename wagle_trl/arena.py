"""Compact state of a masked optimizer: flat tensors that hold the selected elements of many parameters."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import wagle_kernels

from .mask import WeightMask

_RUN = 2**22  # selected elements updated together: bounds the temporary copy of their weights


@dataclass
class Slice:
    """A parameter's selected elements: its mask bits and where they lie in the arena."""

    name: str
    parameter: nn.Parameter
    packed: Tensor
    start: int
    stop: int

    @property
    def weights(self) -> Tensor:
        return self.parameter.detach().view(-1)


@dataclass
class Arena:
    """
    AdamW state of parameters of one group, dtype and device, one flat tensor a kind; every parameter owns a slice, in
    model order, its selected elements in rising flat order.

    Args:
        group (`dict`): Parameter group of the optimizer; holds the options.
        slices (`list[Slice]`): Parameters.
        step (`torch.Tensor`): Number of updates so far, a scalar.
        grad, exp_avg, exp_avg_sq (`torch.Tensor` of shape `(selected,)`, fp32): Gradient accumulator and moments.
        remainder (`torch.Tensor` of shape `(selected,)`, int16, *optional*): Low bits of the fp32 master.
    """

    group: dict[str, Any]
    slices: list[Slice]
    step: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    remainder: Tensor | None

    @classmethod
    def allocate(cls, group: dict[str, Any], parameters: dict[str, nn.Parameter], mask: WeightMask) -> "Arena":
        """Zeroed state for named parameters that are alike in dtype and device."""
        slices, stop = [], 0
        for name, parameter in parameters.items():
            _check_parameter(name, parameter, mask)
            start, stop = stop, stop + mask.num_selected_of(name)
            slices.append(Slice(name, parameter, mask.bits[name].to(parameter.device), start, stop))
        grad, exp_avg, exp_avg_sq = (torch.zeros(stop, device=parameter.device) for _ in range(3))
        remainder = None
        if parameter.dtype == torch.bfloat16 and group["master"] == "split":
            remainder = torch.zeros(stop, dtype=torch.int16, device=parameter.device)
        return cls(group, slices, torch.tensor(0.0), grad, exp_avg, exp_avg_sq, remainder)

    @property
    def states(self) -> dict[str, Tensor]:
        """What lasts from step to step, by kind."""
        kinds = {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "remainder": self.remainder}
        return {kind: values for kind, values in kinds.items() if values is not None}

    def state_of(self, item: Slice) -> dict[str, Tensor]:
        """Views of the state of one parameter, under torch's names."""
        return {"step": self.step, **{kind: values[item.start : item.stop] for kind, values in self.states.items()}}

    def collect(self, item: Slice, gradient: Tensor) -> None:
        """Add the selected part of a dense gradient to the accumulator."""
        target = self.grad[item.start : item.stop]
        wagle_kernels.compress(gradient.reshape(-1), item.packed, target, accumulate=True)

    def update(self) -> None:
        """One AdamW step of every selected weight."""
        self.step += 1
        for run in _runs(self.slices):
            self._update_run(run)

    def _update_run(self, run: list[Slice]) -> None:
        group, start, stop = self.group, run[0].start, run[-1].stop
        weights = torch.empty(stop - start, dtype=run[0].parameter.dtype, device=self.grad.device)
        for item in run:
            wagle_kernels.compress(item.weights, item.packed, weights[item.start - start : item.stop - start])
        wagle_kernels.adamw(
            weights,
            None if self.remainder is None else self.remainder[start:stop],
            self.grad[start:stop],
            self.exp_avg[start:stop],
            self.exp_avg_sq[start:stop],
            step=int(self.step),
            lr=float(group["lr"]),
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )
        for item in run:
            wagle_kernels.scatter(item.weights, item.packed, weights[item.start - start : item.stop - start])


def allocate_arenas(group: dict[str, Any], mask: WeightMask) -> list[Arena]:
    """Arenas of a parameter group, one for each dtype and device in it."""
    kinds: dict[tuple, dict[str, nn.Parameter]] = {}
    for name, parameter in zip(group["param_names"], group["params"], strict=True):
        kinds.setdefault((parameter.dtype, parameter.device), {})[name] = parameter
    return [Arena.allocate(group, parameters, mask) for parameters in kinds.values()]


def _runs(slices: list[Slice]) -> Iterator[list[Slice]]:
    """Consecutive parameters with at most `_RUN` selected elements together (one larger parameter runs alone)."""
    run: list[Slice] = []
    for item in slices:
        if run and item.stop - run[0].start > _RUN:
            yield run
            run = []
        run.append(item)
    yield run


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
