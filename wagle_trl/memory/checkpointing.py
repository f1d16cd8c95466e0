"""Gradient checkpointing of transformer layers: only their inputs are kept for the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def transformer_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """Find the layers that support gradient checkpointing."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def checkpointed_layers(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """
    Keep only the inputs of every transformer layer for the backward pass, which computes the rest again. Unlike gradient
    checkpointing of transformers, this also works in eval mode.
    """
    layers = transformer_layers(model) if enabled else []
    own = {layer: layer.forward for layer in layers if "forward" in vars(layer)}
    with _without_cache(model) if enabled else nullcontext():
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward
            for layer, forward in own.items():
                layer.forward = forward


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Turn off the key-value cache: a layer that is computed twice would fill it twice."""
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    configs = {id(config): config for config in (module.config.get_text_config() for module in models)}.values()
    configs = [config for config in configs if getattr(config, "use_cache", False)]
    for config in configs:
        config.use_cache = False
    try:
        yield
    finally:
        for config in configs:
            config.use_cache = True
