"""Whether a model, its tokenizer and the rows fit each other, before any batch is computed."""

from collections.abc import Iterable, Mapping, Sequence

from peft import PeftModel
from transformers import PreTrainedModel

from ..text import printable
from .chat_template import tokenizer_of
from .formats import Processing
from .tokenization import padding_token_id

Sets = Mapping[str, Iterable[Sequence[int]]]


def check_tokens(model: PreTrainedModel | PeftModel, processing: Processing, sets: Sets) -> None:
    """
    Refuse tokens that the model has no embedding for, and rows that are longer than its positions.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Causal language model.
        processing ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]): Its tokenizer.
        sets (`dict[str, list[list[int]]]`): Name of a set -> token ids of its rows.
    """
    tokenizer = tokenizer_of(processing)
    num_embeddings: int = model.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportIndexIssue, reportAssignmentType]
    padding = padding_token_id(tokenizer)
    if isinstance(padding, int) and padding >= num_embeddings:
        _refuse_token(tokenizer, padding, "the padding token", num_embeddings)
    num_positions = _num_positions(model)
    for name, rows in sets.items():
        for index, ids in enumerate(rows):
            if max(ids, default=0) >= num_embeddings:
                _refuse_token(tokenizer, max(ids), f"row {index} of the {name} set", num_embeddings)
            if num_positions is not None and len(ids) > num_positions:
                raise ValueError(
                    f"Row {index} of the {name} set has {len(ids)} tokens, and the model has {num_positions} positions; set "
                    f"max_length to {num_positions} or shorten the row."
                )


def _refuse_token(tokenizer, token_id: int, place: str, num_embeddings: int) -> None:
    token = printable(repr(tokenizer.convert_ids_to_tokens(token_id)), 50)
    raise ValueError(
        f"The token {token} of {place} has the id {token_id}, and the model has {num_embeddings} embeddings; use the model's own "
        f"tokenizer, or call `model.resize_token_embeddings({len(tokenizer)})` and train it before."
    )


def _num_positions(model: PreTrainedModel | PeftModel) -> int | None:
    """Positions of a model that learned an embedding of each; `None` of models that can count on."""
    config = model.config.get_text_config()
    rotates = getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None)
    return None if rotates else getattr(config, "max_position_embeddings", None)
