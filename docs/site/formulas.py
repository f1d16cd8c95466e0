"""Formulas in pages and docstrings as MathML, which browsers show without a script from the network."""

import re

from latex2mathml.converter import convert

_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_FORMULA = re.compile(r"\\{1,2}\((.+?)\\{1,2}\)", re.DOTALL)


def on_page_markdown(markdown: str, **kwargs) -> str:
    """Convert the formulas of a page, between `\\(` and `\\)`, outside of code blocks."""
    return "".join(part if part.lstrip().startswith("```") else with_mathml(part) for part in _FENCE.split(markdown))


def with_mathml(text: str) -> str:
    """Convert the formulas of a text; those of docstrings have two backslashes."""
    return _FORMULA.sub(lambda found: convert(" ".join(found[1].split())), text)
