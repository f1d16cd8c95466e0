"""Sound files changed anywhere, in any way; and what may come of them: success, or one clear line.

Examples are made by Python's own generator, not by hypothesis: that takes ten times as long as what is tested, and what
it adds, a smaller example, is seldom needed, as an error names file, line and field.
"""

import copy
import io
import json
import os
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from markdown_it import MarkdownIt
from transformers.utils import logging

from wagle_trl.terminal import Terminal

from .hostile import CLEAR_SCREEN, check_error

EXAMPLES = int(os.environ.get("WAGLE_FUZZ_EXAMPLES", 2_000))  # of each kind
SEED = os.environ.get("WAGLE_FUZZ_SEED", "0")
_PART = 2_000  # as many in a test, so that several processes have a share

PARTS = pytest.mark.parametrize("part", range(-(-EXAMPLES // _PART)))

NAMES = ["", "a", "b", "set", "score", "step", "info", "env", "new:b", "gaps:b", "forget_prob", "forget_probability"]
TEXTS = [
    *NAMES,
    *("0.5", "NaN", "null", "true", "F32", "BF16", "F99", "float16", "../x", "x.safetensors", "/etc/passwd", "\0"),
    *(CLEAR_SCREEN, "\x9b31m", "\u202eb", "\ud800", "\u200b", "a\nb", "a\r", "é中🙂", "x" * 3_000, "y" * 390),
    *("[/x]", "[b]", ":smile:", "$\\frac$", "$", "_a", "|", "`", "**", "<b>", "[a](b)", "---", "{{ 7 * 7 }}", "{%"),
    *("{", '{"trust_remote_code": true}', "yes", "[1, 2]", "1e-5", "9" * 400),
]
NUMBERS = [0, 1, -1, 2, 0.5, -0.0, 1e-320, 1e308, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 10**299]
ENDLESS = [10**301, 10**4_000, float("nan"), float("inf"), -float("inf")]
TOKENS = [
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\n", b"\n\n", b"\r", b"\t", b" ", b"\0", b"\x1b[2J", b"#"),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-", b"9" * 400, b"9" * 5_000, b"[" * 200, b'{"a":' * 200),
    *(
        b"\\ud800",
        b"\\u0000",
        b"\\u202e",
        b"\xef\xbb\xbf",
        b"\xff",
        b"\xed\xa0\x80",
        "\u2028".encode(),
        "\x85".encode(),
    ),
]


def fuzz(kind, part, example_in, record_property):
    """
    Run examples of a kind.

    Args:
        kind (`str`): Its name.
        part (`int`): Which of `PARTS`.
        example_in (callable): Takes a folder, and gives what makes an example there with a random generator and says
            `True` if it was accepted, `False` if refused.
        record_property (callable): pytest's, for the counts.
    """
    counts = Counter()
    with _fast_folder() as folder:
        example = example_in(folder)
        for number in range(part * _PART, min(EXAMPLES, (part + 1) * _PART)):
            seed = f"{kind} {SEED} {number}"
            try:
                counts["accepted" if example(Random(seed)) else "refused"] += 1
            except BaseException as error:
                error.add_note(f"Example: random.Random({seed!r})")
                raise
    record_property("fuzzed", [kind, counts["accepted"], counts["refused"]])


@contextmanager
def _fast_folder():
    """A folder in memory, where that is possible; nothing waits for the disk, and nothing is logged."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    with TemporaryDirectory(dir=memory) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("wagle_trl.files.atomic.sync", lambda path: None)
        yield Path(folder)
    logging.set_verbosity(verbosity)


def is_accepted(action, *names):
    """Whether an action succeeds; where it does not, its error must be clear, and name one of the files."""
    try:
        action()
    except (ValueError, OSError) as error:
        check_error(error)
        assert any(str(name) in str(error) for name in names), str(error)
        return False
    return True


# Changes


def text(random):
    if random.random() < 0.7:
        return random.choice(TEXTS)
    characters = (random.choice([0x80, 0x800, 0x10000, 0x110000]) for _ in range(random.randrange(6)))
    return "".join(chr(random.randrange(end)) for end in characters)


def anything(random, depth=2):
    """Any value of JSON."""
    kind = random.randrange(9 if depth else 7)
    if kind < 2:
        return random.choice([None, True, False])
    if kind < 4:
        return random.choice(NUMBERS if random.random() < 0.8 else ENDLESS)
    if kind < 7:
        return text(random)
    values = [anything(random, depth - 1) for _ in range(random.randrange(4))]
    return values if kind == 7 else {text(random): value for value in values}


def _places(tree):
    """Every place in a tree of lists and objects, as the container and the key."""
    found, left = [], [tree]
    while left:
        container = left.pop()
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            found.append((container, key))
            if isinstance(value, dict | list):
                left.append(value)
    return found


def changed_tree(tree, random):
    """A tree with some nodes replaced, removed, renamed, added or swapped."""
    root = [copy.deepcopy(tree)]
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        container, key = random.choice(_places(root))
        match random.randrange(6):
            case 0 | 1:
                container[key] = anything(random)
            case 2 if container is not root:
                del container[key]
            case 3 if isinstance(container, dict):
                container[text(random)] = container.pop(key)
            case 4 if isinstance(container[key], dict):
                container[key][text(random)] = anything(random)
            case _:
                other, place = random.choice(_places(root))
                container[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(container[key])
    return root[0]


def changed_bytes(content, random):
    """Bytes with some parts replaced, removed, added, doubled or cut off."""
    content = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 4])):
        start = random.randrange(len(content) + 1)
        removed = random.choice([0, 0, 1, 1, 8, 100])
        match random.randrange(5):
            case 0:
                content[start : start + removed] = random.randbytes(random.randrange(4))
            case 1 | 2:
                content[start : start + removed] = random.choice(TOKENS)
            case 3:
                content[start:start] = content[start : start + random.choice([1, 10, 100])]
            case 4:
                del content[start:]
    return bytes(content)


def as_json(tree):
    """JSON of any tree, with numbers that Python does not write of itself."""
    return json.dumps(tree, default=str).encode()


def changed_json(tree, random):
    """A JSON file, changed as a tree or as bytes."""
    if random.random() < 0.7:
        return as_json(changed_tree(tree, random))
    return changed_bytes(as_json(tree), random)


# What is shown

_BLOCKS = {"inline"} | {
    f"{name}_{end}"
    for name in ("heading", "paragraph", "bullet_list", "list_item", "table", "thead", "tbody", "tr", "th", "td")
    for end in ("open", "close")
}


def check_shown(*objects):
    """What a terminal shows of tables and lines commands nothing."""
    file = io.StringIO()
    Terminal(file, width=150).print(*objects, sep="\n")
    check_lines(file.getvalue())


def check_lines(shown):
    for line in shown.split("\n"):
        assert line.isprintable(), line


def check_markdown(shown):
    """Text of a file ends no line and no cell, and is neither a link nor HTML, an emphasis or a heading."""
    check_lines(shown)
    tokens = MarkdownIt("commonmark").enable("table").parse(shown)
    inner = [child.type for token in tokens for child in token.children or ()]
    assert {*inner} <= {"text", "text_special", "softbreak", "image", "strong_open", "strong_close"}, inner
    assert {token.type for token in tokens} <= _BLOCKS
    titles = [token.content for token, before in zip(tokens[1:], tokens) if before.type == "heading_open"]
    assert {*titles} <= {
        "Unlearning runs",
        "Runs",
        "Forgetting",
        "Evaluation",
        "Attacks",
        "Masks",
        "Runs of each group",
    }
