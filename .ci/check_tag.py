"""Says whether a tag may be published: `python .ci/check_tag.py v1.2.3`. Needs nothing but Python."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else "none"


def faults(tag: str) -> list[str]:
    """What keeps `tag` from being published, one sentence each."""
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    heading = first(r"^(## .*)$", read("CHANGELOG.md"))
    cited, date = (first(rf"^{key}: *(\S+)$", read("CITATION.cff")) for key in ("version", "date-released"))
    found = []
    if tag != f"v{version}":
        found.append(f"The tag is {tag}, the version in pyproject.toml is {version}; expected the tag v{version}.")
    if cited != version:
        found.append(f"The version in CITATION.cff is {cited}; expected {version}.")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        found.append(f"The date-released in CITATION.cff is {date}; expected a date.")
    elif heading != f"## [{version}] - {date}":
        found.append(f"The newest heading in CHANGELOG.md is {heading!r}; expected '## [{version}] - {date}'.")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python .ci/check_tag.py TAG")
    sys.exit("\n".join(faults(sys.argv[1])) or None)
