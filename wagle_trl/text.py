"""Untrusted text, made safe to show: in a terminal, in Markdown, or in a figure."""

import re
from typing import Any

HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_MAX_LENGTH = 1000
_ELLIPSIS = " ... "


def printable(text: Any, limit: int = _MAX_LENGTH) -> str:
    r"""
    Make `text` one line without control over the terminal. Characters that are not visible as they are, such as escape
    codes, line breaks and changes of the writing direction, become escapes (`\x1b`).

    Args:
        text (`Any`): Text, or an object that `str` turns into text.
        limit (`int`, *optional*, defaults to `1000`):
            Maximum number of characters. A longer text loses its middle: causes stand first and advice last.
    """
    text = str(text)
    if len(text) > limit:  # before escaping, too, so that the removed part is not scanned
        text = _shortened(text, limit)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _shortened(text, limit) if len(text) > limit else text


def _shortened(text: str, limit: int) -> str:
    last = (limit - len(_ELLIPSIS)) // 3
    return text[: limit - len(_ELLIPSIS) - last] + _ELLIPSIS + text[len(text) - last :]


def one_line(text: Any, limit: int = _MAX_LENGTH) -> str:
    """Make `text` [`printable`], with every run of whitespace as one space."""
    return printable(" ".join(str(text).split()), limit)


def escaped(text: Any) -> str:
    """Escape `text` for Markdown and HTML, except for vertical bars, which only tables need to escape."""
    return re.sub(r"([\\`*_\[\]<>#~$&])", r"\\\1", one_line(text))


def code(text: Any) -> str:
    """Format `text` as inline code, which contains neither Markdown nor HTML."""
    return f"`{one_line(text).replace('`', '') or '?'}`"


def figure_text(text: Any, limit: int = 60) -> str:
    """Escape `text` for matplotlib, which interprets dollar signs and a leading underscore."""
    shown = one_line(text, limit).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def percent(share: float) -> str:
    """Format a share as a percentage of three digits."""
    return f"{100 * share:.3g}%"
