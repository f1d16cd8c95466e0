import random

import pytest

from wagle_trl.evaluation.secret_format import parse_format


@pytest.mark.parametrize(
    ("pattern", "places", "num_candidates"),
    [
        ("#", ("0123456789",), 10),
        ("A-##", ("A", "-", "0123456789", "0123456789"), 100),
        ("[xyz]1", ("xyz", "1"), 3),
        ("[13-9]", ("13456789",), 8),
        ("[a-c0-1_]", ("abc01_",), 6),
        ("[#][[][ab]", ("#", "[", "ab"), 2),
        ("[aab]", ("ab",), 2),
    ],
)
def test_places(pattern, places, num_candidates):
    parsed = parse_format(pattern)
    assert parsed.places == places
    assert parsed.num_candidates == num_candidates
    assert parsed.matches(parsed.draw(random.Random(0)))


def test_matches():
    parsed = parse_format("A-##")
    assert parsed.variable == [2, 3]
    assert parsed.matches("A-07")
    assert not any(map(parsed.matches, ["", "A-7", "A-007", "B-07", "A-0x"]))


@pytest.mark.parametrize("pattern", ["", "abc", "[a]", "[#]", "#[", "[]#", "#[ab", "[z-a]"])
def test_formats_that_cannot_be_read(pattern):
    with pytest.raises(ValueError, match="The format"):
        parse_format(pattern)
