"""Hash of everything that the records of an evaluation depend on. Records with another key belong to another evaluation."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .inference import stop_token_ids
from .tofu import EvalOptions, Sample


def evaluation_key(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    base: PreTrainedModel | None,
    options: EvalOptions,
    samples: Mapping[str, Sequence[Sample]],
) -> str:
    """
    Hash every weight of the models, the token ids of the rows, the options, the tokens that end a generation and the
    version of this package.

    The batch size is left out, so that an evaluation that ran out of memory can be continued with a smaller one.

    Args:
        model ([`~transformers.PreTrainedModel`]): Model to evaluate.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        base ([`~transformers.PreTrainedModel`], *optional*): Model before unlearning that it is compared with.
        options ([`~wagle_trl.evaluation.tofu.EvalOptions`]): How to evaluate.
        samples (`dict[str, list[Sample]]`): Set name -> samples.

    Returns:
        `str`: Hexadecimal digits.
    """
    content = [
        version("wagle-trl"),
        [None if m is None else _weights_hash(m) for m in (model, base)],
        stop_token_ids(model, tokenizer),
        asdict(replace(options, batch_size=1)),
        {name: list(part) for name, part in samples.items()},
    ]
    return hashlib.blake2b(json.dumps(content).encode()).hexdigest()


def _weights_hash(model: PreTrainedModel) -> str:
    """Hash all parameters one at a time, so that no copy of the whole model is made."""
    digest = hashlib.blake2b()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
