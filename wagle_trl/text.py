"""Text from files, which others may have written, where it means nothing: to a terminal, or in Markdown."""

import re
from typing import Any

HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_LONGEST = 1000
_CUT = " ... "


def printable(text: Any, limit: int = _LONGEST) -> str:
    r"""
    `text` in one line that commands no terminal: what would not be seen as it is, such as an escape code, a line break
    or a character that turns the direction of writing, is shown as an escape (`\x1b`).

    Args:
        text (`Any`): Text, or what `str` makes one of.
        limit (`int`, *optional*): Most characters; a longer text loses its middle, as causes stand first and advice last.
    """
    text = str(text)
    if len(text) > limit:  # before the escapes, too: what is cut need not be looked at
        text = _shortened(text, limit)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _shortened(text, limit) if len(text) > limit else text


def _shortened(text: str, limit: int) -> str:
    last = (limit - len(_CUT)) // 3
    return text[: limit - len(_CUT) - last] + _CUT + text[len(text) - last :]


def one_line(text: Any, limit: int = _LONGEST) -> str:
    """`text` without line breaks and runs of blanks, [`printable`]."""
    return printable(" ".join(str(text).split()), limit)


def plain(text: Any) -> str:
    """Text that Markdown and HTML leave as it is; bars are the business of tables."""
    return re.sub(r"([\\`*_\[\]<>#~$&])", r"\\\1", one_line(text))


def code(text: Any) -> str:
    """A name as inline code, in which neither Markdown nor HTML means anything."""
    return f"`{one_line(text).replace('`', '') or '?'}`"


def drawn(text: Any, limit: int = 60) -> str:
    """Text of a figure, in which neither dollar signs nor a first underscore mean anything to matplotlib."""
    shown = one_line(text, limit).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def percent(share: float) -> str:
    return f"{100 * share:.3g}%"
