"""
What turns the last hidden states of a model into logits, for a few tokens at a time.

Losses that compare distributions need the LM head itself. Of most models it is a matrix, a scale and a soft cap, which
kernels understand; of the others it is whatever the model's own forward does after its backbone.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from ..distributed import whole
from ..text import printable
from .fused_head import LARGEST_LOGIT, base_of, in_eval_mode, short_rows

# What configs call the factor of the logits; one that is missing costs speed only, see `SplitModel.of`
_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")


@dataclass(frozen=True, eq=False)
class LinearHead:
    """
    LM head by its formula: `soft_cap * tanh(logit_scale * (hidden @ weight.T + bias) / soft_cap)`.

    Args:
        weight (`torch.Tensor` of shape `(vocab, width)`): Weight of the output embeddings.
        bias (`torch.Tensor` of shape `(vocab,)`, *optional*): Bias of the output embeddings.
        logit_scale (`float`, *optional*, defaults to `1.0`): Factor of the logits, as in Cohere and Granite.
        soft_cap (`float`, *optional*): Bound of the logits, as in Gemma 2.
    """

    weight: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0
    soft_cap: float | None = None

    @classmethod
    def of(cls, model: nn.Module) -> "LinearHead":
        """Get the head of a causal language model."""
        base = base_of(model)
        config, lm_head = base.config.get_text_config(), cast(nn.Linear, base.get_output_embeddings())
        if isinstance(lm_head, BaseTunerLayer):
            raise ValueError("the LM head has an adapter")
        scale = next((value for name in _SCALES if (value := getattr(config, name, None)) is not None), None)
        if scale is None:
            scale = 1 / (getattr(config, "logits_scaling", None) or 1.0)
        bias = None if lm_head.bias is None else whole(lm_head.bias)
        return cls(whole(lm_head.weight), bias, scale, getattr(config, "final_logit_softcapping", None))

    def frozen_copy(self) -> "LinearHead":
        """Copy the head as it is now, for a reference where training changes the head itself."""
        bias = None if self.bias is None else self.bias.detach().clone()
        return replace(self, weight=self.weight.detach().clone(), bias=bias)

    @property
    def vocab_size(self) -> int:
        return len(self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits of shape `(tokens, vocab)`, in fp32 or higher, of hidden states of shape `(tokens, width)`."""
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        logits = self.logit_scale * _wide(F.linear(hidden, self.weight.to(hidden.dtype), bias))
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


@dataclass(frozen=True, eq=False)
class OwnHead:
    """
    LM head by the model's own forward, with hidden states in place of what its backbone would give.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model.
        backbone (`str`): Name of the module in it whose output has the last hidden states.
    """

    model: PreTrainedModel
    backbone: str

    def frozen_copy(self) -> "OwnHead":
        """Copy the head as it is now, for a reference where training changes the head itself."""
        backbone = self.model.get_submodule(self.backbone)
        copied = copy.deepcopy(self.model, {id(backbone): backbone})  # all but the backbone
        for name, parameter in copied.named_parameters():
            if not name.startswith(f"{self.backbone}."):
                parameter.requires_grad_(False)
        return replace(self, model=copied)

    @property
    def vocab_size(self) -> int:
        return self.model.config.get_text_config().vocab_size

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits of shape `(tokens, vocab)`, in fp32 or higher, of hidden states of shape `(tokens, width)`."""
        given = copy.copy(self.model.get_submodule(self.backbone))
        output = _Given(last_hidden_state=hidden[None])
        given.__dict__ |= {"forward": lambda *args, **kwargs: output, "_forward_hooks": {}, "_forward_pre_hooks": {}}
        model = _with_part(self.model, self.backbone, given)
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        # Of the class: the forward of the model may be one with a fused head, or under autocast
        logits = _wide(type(self.model).forward(model, input_ids=ids, use_cache=False).logits[0])
        # Finite, since models rule tokens out by logits of minus infinity, and 0 * inf would be no number
        return logits.clamp(min=torch.finfo(logits.dtype).min)


Head = LinearHead | OwnHead


@dataclass(frozen=True, eq=False)
class SplitModel:
    """
    A causal language model as a backbone, which gives hidden states, and an LM head, which makes logits of them.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model, without the wrapper of PEFT.
        backbone (`str`): Name of the module in it whose output has the last hidden states.
        is_linear (`bool`): Whether the formula of [`LinearHead`] gives the model's own logits.
        width (`int`): Size of a hidden state.
    """

    model: PreTrainedModel
    backbone: str
    is_linear: bool
    width: int

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module) -> "SplitModel":
        """
        Find where the head of a model begins, and what it is, by comparison with the model's own logits of one short row.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                Causal language model, on its device. One whose logits need more than its last hidden states is a `ValueError`.
        """
        base = base_of(model)
        with in_eval_mode(base):
            try:
                backbone, hidden, logits = _states_and_logits(base)
                own = OwnHead(base, backbone)
                dtype = max(base.dtype, logits.dtype, key=lambda dtype: torch.finfo(dtype).eps)
                if not _are_close(own.logits(hidden), _wide(logits), dtype):
                    raise ValueError("they differ from its own")
            except Exception as error:  # whatever comes of a model that is not built as most are
                raise ValueError(
                    f"The logits of {type(base).__name__} cannot be computed from its last hidden states "
                    f"({printable(error, 200)}). Use an objective and a retain loss that need log-probabilities only, such "
                    "as NPO with 'nll'."
                ) from error
            # As they are, where a bias counts, and with larger logits, where a bend such as a soft cap counts
            enlarged = hidden * max(1.0, LARGEST_LOGIT / float(logits.abs().max()))
            try:
                linear = LinearHead.of(base)
                is_linear = all(
                    _are_close(linear.logits(states), own.logits(states), dtype) for states in (hidden, enlarged)
                )
            except Exception:  # an adapter in the head, packed weights, no head at all
                is_linear = False
        return cls(base, backbone, is_linear, hidden.shape[-1])

    @property
    def head(self) -> Head:
        """The head as it is now: adapters and sharding replace modules and parameters, so get it again for every step."""
        return LinearHead.of(self.model) if self.is_linear else OwnHead(self.model, self.backbone)

    @property
    def head_parameters(self) -> set[nn.Parameter]:
        """All parameters that make logits of hidden states, also those that the backbone uses, too."""
        named = self.model.named_parameters(remove_duplicate=False)
        return {parameter for name, parameter in named if not name.startswith(f"{self.backbone}.")}

    @contextmanager
    def last_hidden_states(self) -> Iterator[list[Tensor]]:
        """Keep the last hidden states, of shape `(rows, length, width)`, of every forward pass in this context."""
        kept: list[Tensor] = []
        backbone = self.model.get_submodule(self.backbone)
        with backbone.register_forward_hook(lambda module, args, output: kept.append(output.last_hidden_state)):
            yield kept


def _states_and_logits(model: PreTrainedModel) -> tuple[str, Tensor, Tensor]:
    """Name of the outermost module that gives last hidden states; these, and the logits, of a short row."""
    names = {module: name for name, module in model.named_modules() if name}
    found = []

    def note(module: nn.Module, args: tuple, output: object) -> None:
        if module in names and isinstance(output, ModelOutput) and "last_hidden_state" in output:
            found.append((names[module], output["last_hidden_state"]))

    with register_module_forward_hook(note):
        logits = type(model).forward(model, **short_rows(model, 1)).logits  # as in `OwnHead`
    if not found:
        raise ValueError("no part of it gives such states")
    name, hidden = found[-1]  # the outermost returns last
    return name, hidden[0], logits[0]


def _are_close(logits: Tensor, own: Tensor, dtype: torch.dtype) -> bool:
    """Whether the mean difference is a few roundings to `dtype`, and fp32 sums in another order."""
    eps = 2 * torch.finfo(dtype).eps + 32 * torch.finfo(torch.float32).eps
    differences = (logits - own.clamp(min=torch.finfo(own.dtype).min)).abs()
    return bool(differences.mean() <= eps * own.clamp(-LARGEST_LOGIT, LARGEST_LOGIT).abs().mean())


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _with_part(module: nn.Module, name: str, part: nn.Module) -> nn.Module:
    """A module that shares all with `module` but the part of that name."""
    first, _, rest = name.partition(".")
    other = copy.copy(module)
    other.__dict__["_modules"] = module._modules | {
        first: _with_part(module.get_submodule(first), rest, part) if rest else part
    }
    return other


@dataclass
class _Given(ModelOutput):
    """Output of a backbone with last hidden states only."""

    last_hidden_state: Tensor | None = None

    def __getattr__(self, name: str) -> None:
        """Caches, attentions and the like, which models hand on."""
        if name.startswith("_"):
            raise AttributeError(name)
