"""Text from files, which others may have written, in Markdown where it means nothing."""

import re
from typing import Any

HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)


def one_line(text: Any) -> str:
    """`text` without line breaks and runs of blanks."""
    return " ".join(str(text).split())


def plain(text: Any) -> str:
    """Text that Markdown and HTML leave as it is; bars are the business of tables."""
    return re.sub(r"([\\`*_\[\]<>#~$&])", r"\\\1", one_line(text))


def code(text: Any) -> str:
    """A name as inline code, in which neither Markdown nor HTML means anything."""
    return f"`{one_line(text).replace('`', '') or '?'}`"


def percent(share: float) -> str:
    return f"{100 * share:.3g}%"
