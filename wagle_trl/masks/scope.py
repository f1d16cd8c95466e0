"""Scope of a mask: the parameters that it may select from."""

from fnmatch import fnmatch

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel


def scope_parameters(
    model: nn.Module, include: list[str] | None = None, exclude: list[str] | None = None
) -> dict[str, nn.Parameter]:
    """
    Find the trainable parameters that a mask may select from, in model order. Tied weights appear once, by first name.

    Args:
        model (`torch.nn.Module`): Model.
        include (`list[str]`, *optional*):
            Glob patterns; by default all but embeddings, the LM head and, in multimodal models, the weights that text does
            not pass through.
        exclude (`list[str]`, *optional*): Glob patterns to leave out.
    """
    aliases: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(parameter, []).append(name)
    outside = set() if include else embedding_parameters(model) | _beyond_text(model)

    def matches(parameter: nn.Parameter, patterns: list[str] | None) -> bool:
        return any(fnmatch(name, pattern) for name in aliases[parameter] for pattern in patterns or [])

    chosen = {
        names[0]: parameter
        for parameter, names in aliases.items()
        if parameter.requires_grad
        and parameter.numel()
        and parameter not in outside
        and (not include or matches(parameter, include))
        and not matches(parameter, exclude)
    }
    if not chosen:
        raise ValueError(
            f"No trainable parameter is in scope: mask_scope {include}, mask_exclude {exclude}; the model has names "
            f"like '{next(iter(aliases.values()))[0]}'."
        )
    return chosen


def _beyond_text(model: nn.Module) -> set[nn.Parameter]:
    """Weights of the towers and projectors of images and sounds, which get no gradient from text."""
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(whole, PreTrainedModel) or whole.config.get_text_config() is whole.config:
        return set()
    return set(model.parameters()) - set(whole.get_decoder().parameters()) - embedding_parameters(whole)


def embedding_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Find the weights of token and position embeddings and of the LM head."""
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    get_lm_head = getattr(model, "get_output_embeddings", None)  # only transformers models have one
    if get_lm_head is not None:
        modules.append(get_lm_head())
    return {parameter for module in modules if module is not None for parameter in module.parameters()}
