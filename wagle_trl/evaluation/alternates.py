"""
Other answers, which the model invents itself: the alternates of AltPO (https://huggingface.co/papers/2409.13474).

The model is shown a question with its true answer and asked for another one. Every text is sampled from a random stream of
its own, so that neither the batch size nor a restart changes it, but for rounding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.alternates import answer_text, prompted
from ..data.compatibility import check_tokens
from ..data.tokenization import prompt_token_ids
from ..files.schemas import AlternateRecord
from ..masks.cache_key import cache_key
from ..text import printable
from .inference import batches, generate_answers, stop_token_ids
from .resumable_records import PartialRecords

logger = logging.get_logger(__name__)

_LABEL = "A different answer:"
_INSTRUCTION = (
    "Below is a question with its answer. Write a different answer to the same question. It must be plausible but wrong: "
    "change the facts, such as names, dates, places, numbers and titles, and keep style, length and language. Write the "
    "answer alone, without a comment."
)
STOP_STRINGS = ("Question:", "Q:", "Answer:", _LABEL)  # where a model begins another question
_TRIES = 4  # texts per alternate that are sampled at most


@dataclass(frozen=True)
class AlternateOptions:
    """
    Options of generating alternates. The defaults are those of AltPO.

    Args:
        num_alternates (`int`, *optional*, defaults to `5`): Alternates per row.
        temperature (`float`, *optional*, defaults to `1.0`): Temperature of sampling.
        max_new_tokens (`int`, *optional*, defaults to `200`): Longest alternate, in tokens.
        seed (`int`, *optional*, defaults to `0`): Seed of sampling.
        batch_size (`int`, *optional*, defaults to `16`): Texts per generation, and rows between two saves.
    """

    num_alternates: int = field(default=5, metadata={"help": "Alternates per row."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of sampling."})
    max_new_tokens: int = field(default=200, metadata={"help": "Longest alternate, in tokens."})
    seed: int = field(default=0, metadata={"help": "Seed of sampling."})
    batch_size: int = field(default=16, metadata={"help": "Texts per generation, and rows between two saves."})

    def __post_init__(self):
        for name in ("num_alternates", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}.")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}.")


def alternate_prompt(example: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """
    Token ids of what asks for an alternate.

    Args:
        example (`dict`): Prompt and completion, see [`~data.alternates.prompted`].
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): With a chat template, the request is a message of the user.
            Without one, it is the text of the row, which goes on with the beginning of another answer.
    """
    prompt, completion = example["prompt"], example["completion"]
    if isinstance(prompt, str):
        shown = prompt + completion
    else:
        question = "\n".join(message["content"] for message in prompt)
        shown = f"Question: {question}\nAnswer: {answer_text(completion)}"
    if not tokenizer.chat_template:
        return prompt_token_ids({"prompt": f"{shown.strip()}\n{_LABEL}"}, tokenizer)
    messages = [{"role": "user", "content": f"{_INSTRUCTION}\n\n{shown.strip()}"}]
    request = {"prompt": messages, "chat_template_kwargs": {"enable_thinking": False}}
    return prompt_token_ids(request, tokenizer)


def generate_alternates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    options: AlternateOptions,
    path: Path,
    *,
    progress: bool = True,
) -> list[list[str]]:
    """
    Let a model invent other answers to rows.

    A text that is empty, the true answer or an earlier alternate of its row is sampled again, a few times.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model, before unlearning.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        rows (`list[dict]`): Rows with a prompt, in any text format.
        options ([`AlternateOptions`]): How to sample.
        path (`pathlib.Path`): File of the alternates so far. A later call with the same weights, rows and options samples
            only what is missing; one with others is refused.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        `list[list[str]]`: Alternates of each row: `options.num_alternates`, or fewer if the tries were used up.
    """
    examples = [_example(row, index, tokenizer) for index, row in enumerate(rows)]
    prompts = [alternate_prompt(example, tokenizer) for example in examples]
    answers = [answer_text(example["completion"]) for example in examples]
    check_tokens(model, tokenizer, {"forget": prompts})
    key = cache_key(
        model,
        rows=rows,
        prompts=prompts,
        options=asdict(replace(options, batch_size=1)),
        stops=[*STOP_STRINGS, *stop_token_ids(model, tokenizer)],
        vocabulary=tokenizer.get_vocab(),
    )
    partial = PartialRecords(path, key, AlternateRecord, refuse_others=True)
    done = {record["row"] for record in partial.records}
    missing = [row for row in range(len(rows)) if row not in done]
    if done and missing:
        logger.warning(f"{printable(path)}: continuing after {len(done)} of {len(rows)} rows.")
    lengths = [len(prompts[row]) for row in missing]
    for indices in batches(lengths, options.batch_size, "Generating alternates", progress and bool(missing)):
        chosen = {missing[i]: (prompts[missing[i]], answers[missing[i]]) for i in indices}
        found = _sample(model, tokenizer, chosen, options)
        partial.append({"row": row, "alternates": texts} for row, texts in found.items())
    found = {record["row"]: record["alternates"] for record in partial.records}
    return [found[row] for row in range(len(rows))]


def _example(row: Mapping[str, Any], index: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    try:
        return prompted(row, tokenizer)
    except ValueError as error:
        raise ValueError(f"Row {index} of the forget set cannot be used. {error}") from error


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Mapping[int, tuple[list[int], str]],
    options: AlternateOptions,
) -> dict[int, list[str]]:
    """Alternates of rows, given as index -> prompt and answer. Each row takes its first sound texts, in their order."""
    found: dict[int, list[str]] = {row: [] for row in rows}
    tried = dict.fromkeys(rows, 0)

    def num_missing(row: int) -> int:
        return min(options.num_alternates - len(found[row]), _TRIES * options.num_alternates - tried[row])

    while seeds := [(options.seed, row, tried[row] + i) for row in rows for i in range(num_missing(row))]:
        texts = generate_answers(
            model,
            tokenizer,
            [rows[row][0] for _, row, _ in seeds],
            options.batch_size,
            options.max_new_tokens,
            seeds=seeds,
            temperature=options.temperature,
            stop_strings=STOP_STRINGS,
        )
        for (_, row, _), text in zip(seeds, texts, strict=True):
            tried[row] += 1
            text = text.rpartition("</think>")[2].strip()
            if _words(text) not in ([], _words(rows[row][1]), *map(_words, found[row])):
                found[row].append(text)
    return found


def _words(text: str) -> list[str]:
    return text.casefold().split()
