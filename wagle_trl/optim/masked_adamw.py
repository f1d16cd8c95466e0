"""`MaskedAdamW`: AdamW that keeps state for selected weights only and never touches the others."""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import wagle_kernels

from ..masks.mask import WeightMask
from .compact_state import Arena, StateBits, allocate_arenas
from .overlap import check_no_shared_memory

AccumulatorDtype = Literal["float32", "bfloat16"]

# Values of the option `optim` that work with a mask, and how many bits `MaskedAdamW` then keeps per moment
STATE_BITS: dict[str, StateBits] = {
    "adamw_torch": 32,
    "adamw_torch_fused": 32,
    "adamw_8bit": 8,
    "adamw_bnb_8bit": 8,
    "adamw_torch_8bit": 8,
}
MOMENTS = {"exp_avg": torch.int8, "exp_avg_sq": torch.uint8}  # moments and their 8-bit dtypes


class MaskedAdamW(Optimizer):
    """
    AdamW (arXiv 1711.05101) on the selected weights.

    Unselected weights stay bit-identical: they have no gradient, moment, weight decay or share in the clipping norm.
    bf16 weights follow an fp32 master, which is kept as the weight plus an int16 remainder. With a mask of all ones,
    the optimizer equals `torch.optim.AdamW` within rounding.

    Gradients are compressed into accumulators. [`attach_hooks`] does so as soon as each gradient is complete, which
    frees full gradients during the backward pass; otherwise [`step`] does it. An accumulator has the weights' dtype
    until a second gradient is added to it, and fp32 from then on ([`prepare_accumulation`] allocates that in advance).
    A parameter without a gradient is updated as if its gradient were zero.

    Args:
        named_parameters (iterable of `(str, torch.nn.Parameter)`, or of groups whose `params` hold such pairs):
            Parameters; those that the mask does not name are left out. Pass all parameters of a model, so that weights
            that two of them share are detected.
        mask ([`WeightMask`]): Mask of the selected weights, by parameter name.
        lr (`float`, *optional*, defaults to `1e-3`): Learning rate.
        betas (`tuple[float, float]`, *optional*, defaults to `(0.9, 0.999)`): Decay rates of the moments.
        eps (`float`, *optional*, defaults to `1e-8`): Added to the denominator.
        weight_decay (`float`, *optional*, defaults to `1e-2`): Decoupled weight decay of the selected weights.
        state_bits (`int`, *optional*, defaults to `32`):
            `8` keeps the moments of matrices in 8 bits (small floating-point numbers with a shared exponent, see
            `wagle_kernels.reference.eight_bit`); vectors and tensors below 4,096 elements stay at 32. A parameter
            group may set its own.
        master (`"split"` or `None`, *optional*, defaults to `"split"`):
            `None` keeps no remainder: bf16 weights then round every update, and most small updates vanish.
        accumulator_dtype (`"float32"` or `"bfloat16"`, *optional*, defaults to `"float32"`):
            Dtype in which the gradients of bf16 weights are added up. `"bfloat16"` takes half the memory and rounds
            every sum, as torch does without a mask. The gradients of fp32 weights are added up in fp32.

    The attribute `last_grad_norm` is the norm before clipping that [`clip_grad_norm_`] last returned, or `None`.

    Example:
    ```python
    >>> optimizer = MaskedAdamW(model.named_parameters(), mask, lr=1e-5)
    >>> loss.backward()
    >>> optimizer.clip_grad_norm_(1.0)
    >>> optimizer.step()
    ```
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]] | Iterable[dict[str, Any]],
        mask: WeightMask,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        state_bits: StateBits = 32,
        master: Literal["split"] | None = "split",
        accumulator_dtype: AccumulatorDtype = "float32",
    ):
        groups: list[Any] = list(named_parameters)
        if groups and not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._arenas: list[Arena] = []
        pairs = [list(group["params"]) for group in groups]
        groups = [{**g, "params": [(n, p) for n, p in params if n in mask.bits]} for g, params in zip(groups, pairs)]
        if not any(group["params"] for group in groups):
            raise ValueError("The mask names none of the given parameters; check that their names match.")
        check_no_shared_memory(chain.from_iterable(pairs), mask.bits)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        defaults |= {"state_bits": state_bits, "master": master, "accumulator_dtype": accumulator_dtype}
        super().__init__([group for group in groups if group["params"]], defaults)
        for group in self.param_groups:
            _check_options(**{name: group[name] for name in self.defaults})
            group["mask"] = _mask_digest(mask, group["param_names"])
            self._arenas += allocate_arenas(group, mask, MOMENTS)
        self._slices = {item.parameter: (item, arena) for arena in self._arenas for item in arena.slices}
        self.state.update({parameter: arena.state_of(item) for parameter, (item, arena) in self._slices.items()})
        self._has_gradient = False
        self._grad_scale: float | None = None
        self._gradient_error: str | None = None  # says why the collected gradients must not be applied
        self.last_grad_norm: float | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; only the constructor may do so, because the arenas are allocated once."""
        if self._arenas:
            raise ValueError("Parameters cannot be added later; make a new MaskedAdamW with all groups.")
        super().add_param_group(param_group)

    @torch.no_grad()
    def exchange(self, values: Mapping[str, Tensor]) -> None:
        """
        Exchange the selected weights with `values`, in place and bit for bit: twice is nothing. Remainders and moments stay.

        Args:
            values (`dict[str, torch.Tensor]`): By parameter, of shape `(selected,)` and its dtype and device.
        """
        for item, arena in self._slices.values():
            arena.exchange(item, values[item.name])

    # Gradients

    def attach_hooks(self) -> None:
        """From now on, compress and free every gradient as soon as the backward pass completes it."""
        self.remove_hooks()
        self._hooks = [p.register_post_accumulate_grad_hook(self._collect) for p in self._slices]

    def prepare_accumulation(self) -> None:
        """Allocate now the accumulators for gradients that will be added up over several backward passes."""
        for arena in self._arenas:
            arena.prepare_accumulation()

    def remove_hooks(self) -> None:
        """Stop collecting gradients during the backward pass."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _collect(self, parameter: nn.Parameter) -> None:
        """Add the selected part of `parameter.grad` to the accumulator and free the rest."""
        item, arena = self._slices[parameter]
        item.check()
        if parameter.grad is None:
            return
        self._apply_grad_scale()
        arena.collect(item, parameter.grad)
        parameter.grad = None
        self._has_gradient = True

    def _collect_all(self) -> None:
        for parameter in self._slices:
            self._collect(parameter)

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """
        Clip the gradients of the selected weights by their joint norm.

        Args:
            max_norm (`float`): Largest norm; `float("inf")` measures the norm and clips nothing.

        Returns:
            `torch.Tensor`: Norm before clipping, a scalar.
        """
        norm = self._grad_norm()
        self.last_grad_norm = float(norm)
        assert self._grad_scale is not None  # `_grad_norm` has set it
        self._grad_scale *= min(1.0, max_norm / (self.last_grad_norm + 1e-6))
        return norm

    def _grad_norm(self) -> Tensor:
        """Joint norm of the collected gradients. If it is NaN or infinite, raise an error until `zero_grad` is called."""
        self._collect_all()
        scale = 1.0 if self._grad_scale is None else self._grad_scale
        device = self._arenas[0].grad.device
        squares = torch.stack([arena.squared_norm().to(device) for arena in self._arenas])
        norm = squares.sum().sqrt().float() * scale
        if self._gradient_error is None and not norm.isfinite():
            self._gradient_error = self._non_finite_message()
        if self._gradient_error is not None:
            raise ValueError(self._gradient_error)
        self._grad_scale = scale  # set last: `step` does not check gradients again that have a scale
        return norm

    def _apply_grad_scale(self) -> None:
        """Scale the collected gradients now, so that clipping does not scale gradients that are added later."""
        if self._grad_scale not in (None, 1.0):
            for arena in self._arenas:
                arena.scale_gradients(self._grad_scale)
        self._grad_scale = None

    def _non_finite_message(self) -> str:
        for item, arena in self._slices.values():
            if not arena.is_finite(item):
                return (
                    f"The gradient of '{item.name}' is NaN or infinite; no weight was changed in this step. Lower the "
                    "learning rate, or check the data."
                )
        return "The gradient norm overflows; no weight was changed in this step. Lower the learning rate."

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the collected gradients, and an error that they raised."""
        super().zero_grad(set_to_none)
        for arena in self._arenas:
            arena.clear()
        self._has_gradient, self._grad_scale, self._gradient_error = False, None, None

    # Update

    @torch.no_grad()
    def step(self, closure=None):
        """
        Update the selected weights and clear the accumulated gradients.

        NaN or infinite gradients change no weight. They raise an error here or in [`clip_grad_norm_`], and so does
        everything that is added to them, until [`zero_grad`] drops them.

        Args:
            closure (callable, *optional*): Function that re-evaluates the model and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._collect_all()
        if not self._has_gradient:
            return loss
        if self._grad_scale is None:  # otherwise clipping has checked the gradients already
            self._grad_norm()
        assert self._grad_scale is not None  # `_grad_norm` has set it
        for arena in self._arenas:
            arena.begin_step()
            wagle_kernels.adamw(
                arena.weights,
                arena.layout,
                arena.grad,
                **arena.states,
                step=int(arena.step),
                lr=float(arena.group["lr"]),
                beta1=arena.group["betas"][0],
                beta2=arena.group["betas"][1],
                eps=arena.group["eps"],
                weight_decay=arena.group["weight_decay"],
                grad_scale=self._grad_scale,
                backend=None,
            )
        self.zero_grad()
        return loss

    # State

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Load the state of an optimizer with the same groups and mask, bit for bit.

        torch's own version would cast the fp32 moments to the weights' dtype, and replace the views of the arenas.
        """
        groups = state_dict["param_groups"]
        if [group.get("mask") for group in groups] != [group["mask"] for group in self.param_groups]:
            raise ValueError("The optimizer state belongs to another mask or to other parameter groups.")
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        indices = [index for group in groups for index in group["params"]]
        pairs = [(p, state_dict["state"].get(index, {})) for p, index in zip(parameters, indices, strict=True)]
        for parameter, saved in pairs:
            _check_saved_state(self._slices[parameter][0].name, self.state[parameter], saved)
        for parameter, saved in pairs:
            for kind, tensor in self.state[parameter].items():
                tensor.copy_(saved[kind])
        for saved, group in zip(groups, self.param_groups, strict=True):
            kept = ("params", "param_names", "accumulator_dtype")  # the last sets this run's memory, and is no state
            group.update({key: value for key, value in saved.items() if key not in kept})

    @property
    def state_bytes(self) -> int:
        """Bytes of the moments, remainders and gradient accumulators."""
        tensors = [t for arena in self._arenas for t in (arena.grad, *arena.states.values())]
        return sum(t.numel() * t.element_size() for t in tensors)


def _mask_digest(mask: WeightMask, names: Iterable[str]) -> str:
    """Short hash of the mask, which a checkpoint of the optimizer holds instead of the mask's bits."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode())
        digest.update(mask.bits[name].cpu().numpy().data)
    return digest.hexdigest()[:16]


def _check_saved_state(name: str, state: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    if {k: (v.shape, v.dtype) for k, v in state.items()} != {k: (v.shape, v.dtype) for k, v in saved.items()}:
        raise ValueError(
            f"The optimizer state of '{name}' has another dtype, master or number of state bits than this optimizer."
        )


def _check_options(lr, betas, eps, weight_decay, state_bits, master, accumulator_dtype) -> None:
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}.")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must lie in [0, 1), got {betas}.")
    if state_bits not in get_args(StateBits):
        raise ValueError(f"state_bits must be 8 or 32, got {state_bits}.")
    if master not in ("split", None):
        raise ValueError(f"master must be 'split' or None, got '{master}'.")
    if accumulator_dtype not in get_args(AccumulatorDtype):
        raise ValueError(f"accumulator_dtype must be 'float32' or 'bfloat16', got '{accumulator_dtype}'.")
