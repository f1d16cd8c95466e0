"""Docstrings in TRL's format for mkdocstrings: links between names, and formulas."""

import ast
import re
import sys
from pathlib import Path

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from formulas import with_mathml

PACKAGE = "wagle_trl"
# What others document: their names are shown, without a link
OTHERS = ("datasets", "huggingface_hub", "numpy", "peft", "rich", "safetensors", "torch", "transformers", "trl")
# Parameters that share a line, and the deeper lines below
_GROUP = re.compile(
    r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+)(?P<text>(?: \(|:).*(?:\n(?P=indent) +.*)*)", re.MULTILINE
)
_TYPE = re.compile(r"^( +\*{0,2}\w+) \((.+)\):", re.MULTILINE)
_RESULT = re.compile(r"((?:Returns|Yields):\n +)([^:\n]*`[^:\n]*):")
_DEFAULT = re.compile(r"(?:^|, )\*optional\*|, defaults to \[?`[^`]*`\]?")  # the signature says it
_STATED = re.compile(r"^ +(\w+) \(.*defaults to `([^`]+)`", re.MULTILINE)
_REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\](?!\[|\()")


class TrlDocstrings(griffe.Extension):
    """Makes links of references such as [`WeightMask`] and [`~masks.mask.WeightMask`]."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs) -> None:
        self._convert(pkg, loader.modules_collection)

    def _convert(self, found: griffe.Object | griffe.Alias, everything: griffe.ModulesCollection) -> None:
        if found.is_alias:
            return
        if found.docstring:
            show_stated_defaults(found, found.docstring.value)
            text = _TYPE.sub(plain_type, _GROUP.sub(one_by_one, found.docstring.value))
            text = _RESULT.sub(lambda match: f"{match[1]}{plain(match[2])}:", text)
            text = _REFERENCE.sub(lambda match: link(match, found, everything), text)
            found.docstring.value = with_mathml(text)
        for member in found.members.values():
            self._convert(member, everything)


def show_stated_defaults(found: griffe.Object, text: str) -> None:
    """Give fields whose default is another class's, such as `Goal.patience`, the value that the docstring states."""
    for name, stated in _STATED.findall(text):
        value = getattr(found.members.get(name), "value", None)
        for argument in value.arguments if isinstance(value, griffe.ExprCall) else ():
            if isinstance(argument, griffe.ExprKeyword) and isinstance(argument.value, griffe.ExprAttribute):
                argument.value = stated


def link(match: re.Match[str], place: griffe.Object, everything: griffe.ModulesCollection) -> str:
    """Markdown of a reference; one that leads nowhere is left to mkdocstrings, which refuses it."""
    is_short, name = match.groups()
    shown = name.rpartition(".")[2] if is_short else name
    for outer in [*scopes(place), PACKAGE, ""]:
        path = target(f"{outer}.{name}".strip("."), everything)
        if path:
            return f"[`{shown}`][{path}]"
    if name.partition(".")[0] in OTHERS:
        return f"`{name}`"
    return f"[`{shown}`][{name}]"


def one_by_one(match: re.Match[str]) -> str:
    """Describe parameters that share a line one by one."""
    return "\n".join(f"{match['indent']}{name}{match['text']}" for name in match["names"].split(", "))


def plain_type(match: re.Match[str]) -> str:
    """Parameter with its type as mkdocstrings shows it, which is without markup."""
    kind = alternatives(plain(_DEFAULT.sub("", match[2])))
    return f"{match[1]} ({kind}):" if kind else f"{match[1]}:"


def alternatives(kind: str) -> str:
    """Types such as `str, A or B`, which Python reads as a tuple, joined as all others are."""
    try:
        read = ast.parse(kind, mode="eval").body
    except SyntaxError:
        return kind
    return " or ".join(map(ast.unparse, read.elts)) if isinstance(read, ast.Tuple) else kind


def plain(kind: str) -> str:
    return _REFERENCE.sub(lambda match: match[2].rpartition(".")[2], kind).replace("`", "")


def scopes(place: griffe.Object) -> list[str]:
    """Paths of an object and of all that it is in, innermost first."""
    return [place.path] + (scopes(place.parent) if place.parent else [])


def target(path: str, everything: griffe.ModulesCollection) -> str | None:
    """Where a name is defined, or `None`."""
    try:
        found = everything[path]
        return found.final_target.path if found.is_alias else found.path
    except (KeyError, griffe.AliasResolutionError):
        return None
