"""Memory of a step beyond the weights, measured by running it on a copy of the model with shapes but no data."""

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from ..losses import vocabulary
from ..losses.per_sample import Batch, SampleLosses, per_sample_mean
from .allocations import Allocations
from .checkpointing import checkpointed_layers, transformer_layers

# Tile of TRL's fused LM head: tokens and vocabulary entries that are projected at a time
_HEAD_TOKENS = 4096
_HEAD_VOCABULARY = 32768


@dataclass(frozen=True)
class Step:
    """
    Shape and options of a training step.

    Args:
        rows (`int`): Number of rows of the batch.
        length (`int`): Number of tokens per row.
        trainable (`frozenset[str]`): Parameters that get a gradient.
        gradient_checkpointing (`bool`): Whether transformer layers keep only their inputs for the backward pass.
        training (`bool`, *optional*, defaults to `False`): Whether to use training mode instead of eval mode.
        keep_gradients (`bool`, *optional*, defaults to `False`):
            Whether to keep all gradients, as plain training does, instead of freeing each as soon as it is complete.
        passes (`int`, *optional*, defaults to `1`):
            Number of passes before the update. From the second on, gradients exist.
        autocast (`bool`, *optional*, defaults to `False`): Whether to compute in bf16 with weights of any dtype.
    """

    rows: int
    length: int
    trainable: frozenset[str]
    gradient_checkpointing: bool
    training: bool = False
    keep_gradients: bool = False
    passes: int = 1
    autocast: bool = False


@dataclass(frozen=True)
class WorkingMemory:
    """
    Memory of a step beyond the weights.

    Args:
        kept (`int`): Number of bytes that the forward pass keeps for the backward pass.
        peak (`int`): Maximum number of bytes during both passes.
    """

    kept: int
    peak: int


class Simulation:
    """
    Model without data. Operations compute only shapes, so they take no longer for larger tensors.

    Args:
        build (callable): Function that makes the model; it runs where tensors get no memory.
    """

    def __init__(self, build: Callable[[], nn.Module]):
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._mode, torch.device("cpu"):
            self.model = build()
        self._mode.allow_non_fake_inputs = False  # from here on, a real tensor would be a part that was not copied

    def weights(self) -> dict[str, Tensor]:
        """Return parameters and buffers by name, tied ones once."""
        return dict([*self.model.named_parameters(), *self.model.named_buffers()])

    def run(self, losses: SampleLosses, step: Step) -> WorkingMemory:
        """
        Measure the memory of a step.

        Args:
            losses (callable): As in [`~attribution.compute_mask`]; must not depend on values.
            step ([`Step`]): Step.
        """
        self.model.train(step.training)
        for layer in transformer_layers(self.model):
            layer.gradient_checkpointing = False  # `checkpointed_layers` does it in both modes
        with ExitStack() as undo:  # so that the next step finds the model unchanged
            for name, parameter in self.model.named_parameters():
                undo.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(name in step.trainable)
                if parameter.requires_grad and not step.keep_gradients:
                    undo.callback(parameter.register_post_accumulate_grad_hook(_free_gradient).remove)
            undo.callback(self.model.zero_grad)
            return self._run(losses, step)

    def _run(self, losses: SampleLosses, step: Step) -> WorkingMemory:
        gc.collect()  # otherwise reference cycles of an earlier step could be freed during this one
        with (
            self._mode,
            Allocations(self.weights().values()) as memory,
            checkpointed_layers(self.model, step.gradient_checkpointing),
        ):
            base, kept = memory.current, 0
            ids = torch.zeros(step.rows, step.length, dtype=torch.int64)
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros_like(ids)}
            for _ in range(step.passes):
                with torch.autocast("cpu", torch.bfloat16, enabled=step.autocast):
                    means, _ = losses(self.model, batch)
                kept = kept or memory.current - base  # of the first pass, before gradients exist
                means.sum().backward()
                del means
            return WorkingMemory(kept, memory.peak - base)


def copy_without_data(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """
    Copy a model without data, for [`Simulation`] to build. The copy is on the CPU, where torch's own kernels suffice.

    Args:
        model (`torch.nn.Module`): Model, which stays unchanged.
        dtype (`torch.dtype`, *optional*): Dtype of the copy's parameters; by default each keeps its own.
    """
    attributes = (value for module in model.modules() for value in vars(module).values())
    tensors = [t for t in attributes if isinstance(t, Tensor)] + [*model.parameters(), *model.buffers()]
    copied = copy.deepcopy(model, {id(tensor): _empty_like(tensor, dtype) for tensor in tensors})
    for module in copied.modules():
        # Flash attention needs a GPU, and takes as much memory as torch's own attention
        if isinstance(module, PreTrainedModel) and "flash" in (module.config._attn_implementation or ""):
            module.config._attn_implementation = "sdpa"
    return copied


def losses_on_gpu(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """
    Compute sample losses with the memory of TRL's fused LM head on a GPU, where kernels update the logits in place. On a
    CPU, TRL's head makes several fp32 copies of them.
    """
    log_probs, _ = predictions_on_gpu(model, batch)
    return per_sample_mean(-log_probs, batch["labels"][:, 1:] != -100)


def predictions_on_gpu(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """
    Compute log-probabilities with that memory, of shape `(rows, length - 1)`, and the last hidden states, of shape
    `(rows, length, width)`.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    decoder, lm_head = model.get_decoder(), model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    states = decoder(**inputs, use_cache=False).last_hidden_state
    hidden = states[:, :-1]
    log_probs = _FusedHead.apply(hidden.reshape(-1, hidden.size(-1)), lm_head.weight)
    return log_probs.view(hidden.shape[:2]), states


@contextmanager
def kernels_of_gpu() -> Iterator[None]:
    """Have the losses of [`~losses.vocabulary`] take the memory of TRL's kernels on a GPU, for the same reason."""
    on_gpu = {"ChunkedLogProbFunction": _FusedEntropy, "ChunkedDivergenceFunction": _FusedDivergence}
    own = {name: kernel for name, kernel in vars(vocabulary).items() if name in on_gpu}
    for name in own:
        setattr(vocabulary, name, on_gpu[name])
    try:
        yield
    finally:
        for name, kernel in own.items():
            setattr(vocabulary, name, kernel)


def _empty_like(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(torch.empty(tensor.shape, dtype=dtype or tensor.dtype), tensor.requires_grad)
    return torch.empty(tensor.shape, dtype=tensor.dtype)


class _FusedHead(torch.autograd.Function):
    """Allocations of TRL's fused LM head on a GPU, without its arithmetic."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        _logits_tile(hidden, ctx.dtype)
        return hidden.new_zeros(len(hidden), dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        sums = [
            torch.zeros_like(tensor, dtype=torch.float32) if needed else None
            for tensor, needed in zip((hidden, weight), ctx.needs_input_grad)
        ]
        tile = _logits_tile(hidden, ctx.dtype)  # alive until the gradients are rounded
        of_hidden, of_weight = (None if total is None else total.to(hidden.dtype) for total in sums)
        del tile
        return of_hidden, of_weight


class _FusedEntropy:
    """The same with the interface of TRL's function, whose first two results are log-probabilities and entropies."""

    @staticmethod
    def apply(hidden: Tensor, weight: Tensor, *options) -> tuple[Tensor, Tensor]:
        values = _FusedHead.apply(hidden, weight)
        return values, values


class _FusedDivergence(torch.autograd.Function):
    """Allocations of TRL's divergence of two heads on a GPU: a tile of fp32 logits of each."""

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, bias, reference_hidden: Tensor, reference_weight: Tensor, *options
    ):
        ctx.save_for_backward(hidden, weight, reference_hidden, reference_weight)
        ctx.dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        _, _ = (_logits_tile(hidden, torch.float32) for _ in range(2))
        return hidden.new_zeros(len(hidden), dtype=torch.float32), hidden.new_zeros(len(hidden), dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad: Tensor, _) -> tuple[Tensor | None, ...]:
        hidden, weight, *_ = ctx.saved_tensors
        sums = [
            torch.zeros_like(tensor, dtype=torch.float32) if needed else None
            for tensor, needed in zip((hidden, weight), ctx.needs_input_grad)
        ]
        tiles = [_logits_tile(hidden, torch.float32), _logits_tile(hidden, torch.float32)]
        rounded = tiles[0].to(ctx.dtype)
        gradients = [None if total is None else total.to(hidden.dtype) for total in sums]
        del tiles, rounded
        return *gradients, *(None,) * 10


def _logits_tile(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return hidden.new_empty(min(len(hidden), _HEAD_TOKENS), _HEAD_VOCABULARY, dtype=dtype)


def _free_gradient(parameter: nn.Parameter) -> None:
    parameter.grad = None
