"""The optimizers that a masked AdamW step is compared with, each behind one interface.

None of them knows masks, so each first multiplies the gradients by the mask, as published WAGLE does. Their weight decay
then still moves unselected weights, and their state covers all weights. Each is set up as its documentation advises for
bf16 weights; `DISTRIBUTIONS` are optional and never dependencies of the package.

    python -m benchmarks peers
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distributions
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

DISTRIBUTIONS = ("bitsandbytes", "flashoptim", "torch-optimi", "torchao")
OPTIONS: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}


@dataclass
class PeerStep:
    """One step: mask the gradients in place, then update. Gradients stay, so a step can be repeated for timing."""

    optimizer: Optimizer
    parameters: list[Tensor]
    masks: list[Tensor]

    def __call__(self) -> None:
        torch._foreach_mul_([parameter.grad for parameter in self.parameters], self.masks)
        self.optimizer.step()

    @property
    def state_bytes(self) -> int:
        """Bytes of the optimizer's state; there is none before the first step."""
        storages = (tensor.untyped_storage() for tensor in _tensors(self.optimizer.state))
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())  # lookup tables are shared


class PlainOptimiStep(PeerStep):
    """optimi without Triton uses bf16 gradients as scratch: it gets a copy, made by the masking itself."""

    def __init__(self, optimizer: Optimizer, parameters: list[Tensor], masks: list[Tensor]):
        super().__init__(optimizer, parameters, masks)
        self.gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter.grad)

    def __call__(self) -> None:
        for gradient, mask, parameter in zip(self.gradients, self.masks, self.parameters):
            torch.mul(gradient, mask, out=parameter.grad)
        self.optimizer.step()


def torch_adamw(parameters: list[Tensor], masks: list[Tensor]) -> PeerStep:
    """Published WAGLE. Moments in the weights' dtype; bf16 weights round every update."""
    return PeerStep(torch.optim.AdamW(parameters, fused=True, **OPTIONS), parameters, masks)


def bitsandbytes_adamw(parameters: list[Tensor], masks: list[Tensor]) -> PeerStep:
    """8-bit moments in blocks of 256; bf16 weights round every update."""
    from bitsandbytes.optim import AdamW8bit

    return PeerStep(AdamW8bit(parameters, **OPTIONS), parameters, masks)


def optimi_adamw(parameters: list[Tensor], masks: list[Tensor]) -> PeerStep:
    """Moments in the weights' dtype; bf16 weights with Kahan summation."""
    from optimi import AdamW

    step = PeerStep if parameters[0].is_cuda else PlainOptimiStep
    return step(AdamW(parameters, triton=parameters[0].is_cuda, **OPTIONS), parameters, masks)


def flashoptim_adamw(parameters: list[Tensor], masks: list[Tensor]) -> PeerStep:
    """8-bit moments in groups of 32; bf16 weights with 8 bits of error correction, the default."""
    from flashoptim import FlashAdamW

    bits = None if parameters[0].dtype == torch.float32 else 24  # it refuses error correction of fp32
    return PeerStep(FlashAdamW(parameters, master_weight_bits=bits, **OPTIONS), parameters, masks)


def torchao_adamw(parameters: list[Tensor], masks: list[Tensor]) -> PeerStep:
    """8-bit moments in blocks of 256, compiled for every shape; bf16 weights with stochastic rounding."""
    from torchao.optim import AdamW8bit

    return PeerStep(AdamW8bit(parameters, bf16_stochastic_round=True, **OPTIONS), parameters, masks)


PEERS: dict[str, Callable[[list[Tensor], list[Tensor]], Callable[[], None]]] = {
    "torch AdamW fused + gradient mask": torch_adamw,
    "bitsandbytes AdamW8bit": bitsandbytes_adamw,
    "torch-optimi AdamW": optimi_adamw,
    "flashoptim AdamW": flashoptim_adamw,
    "torchao AdamW8bit": torchao_adamw,
}


def available(device: torch.device) -> dict[str, str | None]:
    """By name, `None` for a peer that took a step on `device`, else the reason why it could not, in one line."""
    return {name: _reason(factory, device) for name, factory in PEERS.items()}


def versions() -> dict[str, str | None]:
    """Of the peers' distributions, `None` where one is not installed."""
    installed = {name: list(distributions(name=name)) for name in DISTRIBUTIONS}
    return {name: found[0].version if found else None for name, found in installed.items()}


def _reason(factory: Callable, device: torch.device) -> str | None:
    try:
        _first_step(factory, device, torch.bfloat16)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # whatever a package raises where it does not run
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return None


def _first_step(factory: Callable, device: torch.device, dtype: torch.dtype) -> PeerStep:
    """On 2^20 weights: 8-bit optimizers keep small parameters in 32 bits."""
    parameter = nn.Parameter(torch.randn(1024, 1024, device=device, dtype=dtype))
    parameter.grad = torch.randn_like(parameter)
    step = factory([parameter], [torch.rand(parameter.shape, device=device) < 0.5])
    step()
    return step


def _tensors(item: Any) -> list[Tensor]:
    """The plain tensors in nested state; packages wrap their quantized ones in types of their own."""
    if type(item) is Tensor:
        return [item]
    children = item if isinstance(item, dict) else getattr(item, "__dict__", {})
    return [tensor for child in children.values() for tensor in _tensors(child)]


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print({"torch": torch.__version__, **versions()})
    for name, reason in available(device).items():
        print(f"{name}: {reason or 'runs; bytes of state a weight:'}")
        for dtype in () if reason else (torch.bfloat16, torch.float32):
            print(f"  {dtype}: {_first_step(PEERS[name], device, dtype).state_bytes / 2**20:.3f}")


if __name__ == "__main__":
    main()
