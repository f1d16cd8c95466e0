"""Chat templates: messages of a row to text and tokens, the same every day and for tokenizers and processors alike."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.data_utils import prepare_multimodal_messages

from ..text import printable
from .formats import Processing, without_nulls

# The date is the one that Llama 3 templates fall back to
_FIXED_CLOCK = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


def tokenizer_of(processing: Processing) -> PreTrainedTokenizerBase:
    """The tokenizer of a processor, or the tokenizer itself."""
    return processing.tokenizer if isinstance(processing, ProcessorMixin) else processing  # pyright: ignore


def _parsed(row: Mapping[str, Any], column: str, kind: type) -> Any:
    """What a column holds, which may be written as JSON; `None` if it is empty."""
    value = row.get(column)
    if isinstance(value, str) and value.strip():
        with suppress(ValueError):
            value = json.loads(value)
    if value and not isinstance(value, kind):
        raise ValueError(f"Its {column} is no {kind.__name__}: {printable(repr(value), 100)}.")
    return value or None


class ChatTemplate:
    """
    The chat template, and what a row gives it.

    Args:
        row (`dict`): Row that may have `tools` and `chat_template_kwargs`.
        processing: Tokenizer or processor.
        marked (`bool`, *optional*, defaults to `False`): Whether the template must mark what the assistant says.
    """

    def __init__(self, row: Mapping[str, Any], processing: Processing, marked: bool = False):
        template = processing.chat_template or tokenizer_of(processing).chat_template
        if not template:
            raise ValueError(
                "It is a conversation, but the tokenizer has no chat template; give rows of question/answer or prompt/completion "
                "as plain text, or, in training, a template (`chat_template_path`)."
            )
        if marked and not has_generation_markers(template):
            template = get_training_chat_template(processing)
        self.processing = processing
        self.options = {
            "chat_template": pin_date(template),
            "tools": without_nulls(_parsed(row, "tools", list)),
            **(without_nulls(_parsed(row, "chat_template_kwargs", dict)) or {}),
        }
        self.takes_text = self._takes_text()

    def _takes_text(self) -> bool:
        """Whether content may be text: templates of some models that see images know only lists of parts."""
        messages = [{"role": "user", "content": "\ue000"}]
        try:
            return "\ue000" in self.processing.apply_chat_template(messages, **self.options, tokenize=False)
        except Exception:  # whatever the code of a template raises
            return False

    def _apply(self, messages: list[dict[str, Any]], **options) -> Any:
        if not self.takes_text:
            messages = prepare_multimodal_messages(messages)
        try:
            return self.processing.apply_chat_template(messages, **self.options, **options)
        except Exception as error:  # whatever the code of a template raises
            raise ValueError(f"The chat template refuses it: {printable(error, 300)}") from error

    def render(self, messages: list[dict[str, Any]], **options) -> str:
        return self._apply(messages, tokenize=False, **options)

    def token_ids(self, text: str) -> list[int]:
        """Tokens of rendered text, which has the special tokens, but for processors whose template leaves out the first."""
        tokenizer = tokenizer_of(self.processing)
        begun = tokenizer.bos_token is not None and text.startswith(str(tokenizer.bos_token))
        add = isinstance(self.processing, ProcessorMixin) and not begun
        return tokenizer(text, add_special_tokens=add)["input_ids"]

    def assistant_mask(self, example: Mapping[str, Any]) -> list[int]:
        messages = example["prompt"] + example["completion"]
        marked = self._apply(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        mask = marked["assistant_masks"]
        return mask[0] if isinstance(mask[0], list) else mask


def pin_date(chat_template: Any) -> Any:
    """
    A chat template that renders the same text every day.

    Some templates write today's date into the prompt, so that rows tokenized on two days differ, and neither is what
    the model was trained on. A macro shadows the clock with a fixed date. A pinned template stays as it is, as do templates
    by name and `None`.
    """
    if not isinstance(chat_template, str) or "strftime_now" not in chat_template:
        return chat_template
    return _FIXED_CLOCK + chat_template.removeprefix(_FIXED_CLOCK)
