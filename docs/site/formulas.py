"""What Markdown of GitHub and of this site write in two ways: formulas, and bars in the code of a table."""

import re

from latex2mathml.converter import convert

_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)[^`\n]+\1")
_FORMULA = re.compile(r"\\{1,2}\((.+?)\\{1,2}\)", re.DOTALL)


def on_page_markdown(markdown: str, **kwargs) -> str:
    """Convert the formulas of a page, between `\\(` and `\\)`, and the escaped bars of code, outside of code blocks."""
    parts = _FENCE.split(markdown)
    return "".join(part if part.lstrip().startswith("```") else with_mathml(plain_bars(part)) for part in parts)


def plain_bars(text: str) -> str:
    """Take the backslash from bars in code: GitHub needs it in a table, and here it would be shown."""
    return _CODE.sub(lambda found: found[0].replace("\\|", "|"), text)


def with_mathml(text: str) -> str:
    """
    Convert the formulas of a text to MathML, which browsers show without a script from the network. Those of docstrings
    have two backslashes.
    """
    return _FORMULA.sub(lambda found: mathml(" ".join(found[1].split())), text)


def mathml(formula: str) -> str:
    """Convert a formula. One with an unknown command, which would be shown as it is, is refused."""
    converted = convert(formula)
    if unknown := re.search(r">(\\\w+)<", converted):
        raise ValueError(f"latex2mathml does not know {unknown[1]} of '{formula}'.")
    return converted
