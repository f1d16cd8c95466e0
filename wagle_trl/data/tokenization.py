"""
From rows to token ids and labels, in one way: for training, attribution, trajectory, evaluation and attacks.

What is scored is the answer, from where its own text begins: what a chat template puts before it, such as an empty think
block, is no part of it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length

from ..text import printable
from .chat_template import ChatTemplate, tokenizer_of
from .formats import Processing, map_rows, split_prompt, with_messages

IGNORED = -100


@dataclass(frozen=True)
class RowOptions:
    """
    What decides which tokens of a row go through a model, and which of them are scored. Names and meanings are those of
    [`~trl.SFTConfig`].

    Args:
        dataset_text_field (`str`, *optional*, defaults to `"text"`): Column of plain text.
        completion_only_loss (`bool`, *optional*): Whether to score answers alone; by default they are. `False` scores
            prompts too.
        assistant_only_loss (`bool`, *optional*, defaults to `False`): Whether to score all that the assistant says in a
            conversation, where its last message is scored otherwise.
        max_length (`int`, *optional*): Longest row, in tokens. Longer ones are cut.
        truncation_mode (`str`, *optional*, defaults to `"keep_start"`): `"keep_start"` or `"keep_end"`.
    """

    dataset_text_field: str = field(default="text", metadata={"help": "Column of rows of plain text."})
    completion_only_loss: bool | None = field(
        default=None, metadata={"help": "Whether to score answers alone, as by default, or prompts too."}
    )
    assistant_only_loss: bool = field(
        default=False, metadata={"help": "Score all that the assistant says, not its last message alone."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest row, in tokens. Longer ones are cut, and counted."}
    )
    truncation_mode: Literal["keep_start", "keep_end"] = field(
        default="keep_start", metadata={"help": "Which end of a longer row is kept."}
    )

    @classmethod
    def of(cls, options: Any) -> "RowOptions":
        """Those of an object that has them all, such as an [`~trl.SFTConfig`]."""
        return cls(**{name: getattr(options, name) for name in RowOptions.__dataclass_fields__})


DEFAULT = RowOptions()


def tokenize_row(row: Mapping[str, Any], tokenizer: Processing, options: RowOptions = DEFAULT) -> dict[str, list[int]]:
    """
    Token ids of a row, and labels: `-100` where a token is not scored.

    Plain text is followed by an end-of-sequence token.

    Args:
        row (`dict`): Row of any format, see [`~data.formats.row_format`], with `tools` and `chat_template_kwargs` if any.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]): The model's.
        options ([`RowOptions`], *optional*): What is scored, and how long rows may be.
    """
    return cut_tokens(uncut_tokens(row, tokenizer, options), options)


def cut_tokens(tokens: Mapping[str, list[int]], options: RowOptions) -> dict[str, list[int]]:
    """Tokens and labels within `options.max_length`."""
    size = options.max_length
    kept = (
        slice(None) if size is None else slice(-size, None) if options.truncation_mode == "keep_end" else slice(size)
    )
    return {name: tokens[name][kept] for name in ("input_ids", "labels")}


def uncut_tokens(row: Mapping[str, Any], tokenizer: Processing, options: RowOptions = DEFAULT) -> dict[str, list[int]]:
    """[`tokenize_row`] whatever the length."""
    if row.get("input_ids") is not None:
        return _given_tokens(row, options)
    example = split_prompt(row, tokenizer, options.dataset_text_field)
    if isinstance(example["prompt"], str):
        ids, start = _text_tokens(example, tokenizer)
        return {"input_ids": ids, "labels": _labels(ids, 0 if options.completion_only_loss is False else start)}
    template = ChatTemplate(row, tokenizer, options.assistant_only_loss)
    ids, start = _chat_tokens(example, template)
    labels = _labels(ids, start)
    _check_answer_scored(labels, example["completion"], tokenizer_of(tokenizer))
    if options.completion_only_loss is False or (options.assistant_only_loss and "messages" in with_messages(row)):
        labels = ids
    if options.assistant_only_loss:
        labels = [
            label if said else IGNORED for label, said in zip(labels, template.assistant_mask(example), strict=True)
        ]
        if all(label == IGNORED for label in labels):
            raise ValueError("The chat template marks nothing as the assistant's; it needs {% generation %}.")
    return {"input_ids": ids, "labels": labels}


def num_scored(labels: list[int]) -> int:
    """Number of tokens that are scored; there is nothing before the first from which it could be predicted."""
    return sum(label != IGNORED for label in labels[1:])


def _labels(ids: list[int], start: int) -> list[int]:
    return [IGNORED] * start + ids[start:]


def _given_tokens(row: Mapping[str, Any], options: RowOptions) -> dict[str, list[int]]:
    """A tokenized row, with its own labels, or by its own masks as in `SFTTrainer`."""
    ids = list(row["input_ids"])
    if not all(isinstance(i, int) for i in ids):
        raise ValueError("Its input_ids are no whole numbers.")
    if row.get("labels") is not None:
        labels = list(row["labels"])
    else:
        labels = ids
        names = (
            ["assistant_masks"] if options.completion_only_loss is False else ["completion_mask", "assistant_masks"]
        )
        for mask in (row[name] for name in names if row.get(name) is not None):
            if len(mask) != len(ids):
                raise ValueError(
                    f"It has {len(ids)} input_ids and a mask of {len(mask)}; each token needs one of both."
                )
            labels = [label if kept else IGNORED for label, kept in zip(labels, mask, strict=True)]
    if len(labels) != len(ids):
        raise ValueError(f"It has {len(ids)} input_ids and {len(labels)} labels; each token needs one of both.")
    if not all(isinstance(i, int) for i in labels) or any(-100 < label < 0 for label in labels):
        raise ValueError("Its labels are not a token or -100 for each of its tokens.")
    if any(label not in (IGNORED, token) for token, label in zip(ids, labels, strict=True)):
        raise ValueError("Its labels are other tokens than its input_ids; they must not be shifted.")
    attended = row.get("attention_mask")
    if attended is not None and len(attended) == len(ids):  # what is not attended to is padding
        kept = [i for i, bit in enumerate(attended) if bit]
        ids, labels = [ids[i] for i in kept], [labels[i] for i in kept]
    return {"input_ids": ids, "labels": labels}


def padding_token_id(processing: Processing) -> int:
    """Id of the token to pad with. It is neither attended to nor scored, so a token with a meaning will do."""
    tokenizer = tokenizer_of(processing)
    token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return token_id  # pyright: ignore[reportReturnType]


# Plain text


def _text_tokens(example: Mapping[str, str], processing: Processing) -> tuple[list[int], int]:
    """Tokens, and where the completion begins."""
    tokenizer = tokenizer_of(processing)
    if tokenizer.eos_token is None:
        raise ValueError("The tokenizer has no end-of-sequence token to end an answer with; set its `eos_token`.")
    text, end = example["prompt"] + example["completion"], str(tokenizer.eos_token)
    ids = tokenizer(text if text.endswith(end) else text + end)["input_ids"]
    prompt_ids = prompt_token_ids(example, processing)
    return ids, common_prefix_length(prompt_ids, ids)


def prompt_token_ids(example: Mapping[str, Any], processing: Processing) -> list[int]:
    """Token ids of a prompt (text, or messages with the generation prompt)."""
    if isinstance(example["prompt"], list):
        template = ChatTemplate(example, processing)
        return template.token_ids(template.render(with_messages(example)["prompt"], add_generation_prompt=True))
    return tokenizer_of(processing)(example["prompt"])["input_ids"] if example["prompt"] else []


# Conversations


def _chat_tokens(example: Mapping[str, Any], template: ChatTemplate) -> tuple[list[int], int]:
    """Tokens, and where the first message of the completion says something of its own."""
    prompt, (first, *others) = example["prompt"], example["completion"]
    text = template.render([*prompt, first, *others])
    # Up to there the text is the same if something else is said
    another = "\ue000" if "\ue000" not in text else "\ue001"
    other_text = template.render([*prompt, {"role": first["role"], "content": another}, *others])
    before = os.path.commonprefix([text, other_text])  # noqa: RUF071 (by letters)
    ids = template.token_ids(text)
    return ids, common_prefix_length(template.token_ids(before), ids)


def _check_answer_scored(
    labels: list[int], completion: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> None:
    """A template may leave out what it does not know, or print something else in its place."""
    scored = tokenizer.decode([label for label in labels if label != IGNORED])
    for message in completion:
        answer = message["content"].rpartition("</think>")[2] if message["role"] == "assistant" else ""
        calls = [call.get("function") or call for call in message.get("tool_calls") or ()]
        for text in (answer, *(call["name"] for call in calls)):
            # By way of the tokenizer, which may know neither all letters nor capitals
            known = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
            if _letters(known) not in _letters(scored):
                raise ValueError(
                    f"The chat template does not hold its answer {printable(repr(text), 100)}: what would be scored is "
                    f"{printable(repr(scored), 200)}."
                )


def _letters(text) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


# Data sets


def tokenize_dataset(
    dataset: Dataset | IterableDataset,
    processing: Processing,
    options: RowOptions,
    name: str,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """
    `dataset` with the columns of [`uncut_tokens`] beside its own. A `ValueError` names the row that cannot be tokenized.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): Rows of any format.
        processing: Tokenizer or processor.
        options ([`RowOptions`]): What is scored.
        name (`str`): What messages call the set, such as `"forget"`.
        num_proc (`int`, *optional*): Processes that tokenize.
    """
    arguments = {"tokenizer": processing, "options": options}
    return map_rows(dataset, uncut_tokens, f"the {name} set", arguments, None, f"Tokenizing {name} dataset", num_proc)
