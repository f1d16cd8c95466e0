"""Hash of everything that the records of an evaluation depend on. Records with another key belong to another evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..masks.cache_key import cache_key
from .inference import stop_token_ids
from .samples import Sample
from .tofu import EvalOptions


def evaluation_key(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    base: PreTrainedModel | None,
    options: EvalOptions,
    samples: Mapping[str, Sequence[Sample]],
) -> str:
    """
    Hash the models as [`~masks.cache_key.cache_key`] does, the token ids of the rows, the options, the vocabulary and the
    tokens that end a generation.

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
    return cache_key(
        model,
        base=None if base is None else cache_key(base),
        stops=stop_token_ids(model, tokenizer),
        vocabulary=tokenizer.get_vocab(),  # which generated answers are read with
        options=asdict(replace(options, batch_size=1)),
        samples={name: list(part) for name, part in samples.items()},
    )
