"""The FAQ quotes messages in the words of the source: whoever searches for one must find it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FAQ = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
QUOTED = [quoted.strip() for _, quoted in re.findall(r"^### (`+)(.+)\1$", FAQ, re.MULTILINE)]


@pytest.fixture(scope="module")
def messages():
    """Every text in the source, with `…` for what is put into it."""
    texts = []
    for path in (ROOT / "wagle_trl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Constant(value=str(text)):
                    texts.append(text)
                case ast.JoinedStr(values=parts):
                    texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in parts))
    return texts


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_stands_in_the_source(quoted, messages):
    begun = quoted.removesuffix("…")  # the rest may be left out
    assert any(begun in text for text in messages)


def test_the_page_quotes_messages_once():
    assert len(QUOTED) == len(set(QUOTED)) > 25
