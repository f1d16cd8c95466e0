"""Formats of secrets: patterns such as `"0### ### ###"` that say which characters may stand at each place."""

import math
import random
import re
import string
from typing import NamedTuple


class SecretFormat(NamedTuple):
    """
    Format of a secret, read by [`parse_format`].

    Attributes:
        pattern (`str`): Pattern that it was read from.
        places (`tuple[str, ...]`): For each character of the secret, the characters that may stand there.
    """

    pattern: str
    places: tuple[str, ...]

    @property
    def num_candidates(self) -> int:
        """Number of strings that have the format."""
        return math.prod(map(len, self.places))

    @property
    def variable(self) -> list[int]:
        """Places where more than one character may stand."""
        return [place for place, characters in enumerate(self.places) if len(characters) > 1]

    def matches(self, text: str) -> bool:
        """Say whether the text has the format."""
        return len(text) == len(self.places) and all(
            character in characters for character, characters in zip(text, self.places, strict=True)
        )

    def draw(self, rng: random.Random) -> str:
        """Draw one of all strings of the format, each with the same probability."""
        return "".join(map(rng.choice, self.places))


def parse_format(pattern: str) -> SecretFormat:
    """
    Read a pattern. `#` stands for a digit, and `[...]` for one of the characters in it, where `a-z` is a range. Every other
    character stands for itself: `"A-##[xy]"` is the format of the 200 strings from `"A-00x"` to `"A-99y"`.

    Args:
        pattern (`str`):
            Pattern, for instance `"####-###-###"`. A `#` or `[` of the secret itself is written `[#]` or `[[]`.

    Returns:
        [`SecretFormat`]: The format.
    """
    places = []
    for piece in re.findall(r"\[[^\]]+\]|.", pattern, re.DOTALL):
        if piece == "#":
            places.append(string.digits)
        elif piece == "[":
            raise ValueError(f"The format {pattern!r} has a '[' without a ']', or nothing in between.")
        elif piece.startswith("["):
            ranges = re.findall(r"(.)-(.)|(.)", piece[1:-1], re.DOTALL)
            characters = [one or "".join(map(chr, range(ord(first), ord(last) + 1))) for first, last, one in ranges]
            places.append("".join(dict.fromkeys("".join(characters))))
        else:
            places.append(piece)
    parsed = SecretFormat(pattern, tuple(places))
    if "" in places or not parsed.variable:
        raise ValueError(
            f"The format {pattern!r} leaves nothing to guess: mark digits with '#', other characters as in '[a-z]'."
        )
    return parsed
