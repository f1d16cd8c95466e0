"""Personal records of made-up people: question/answer rows whose answers are numbers of fixed formats.

Every digit is drawn uniformly within its format, and every question of a fact differs by the name only. So no word reveals
an answer, and a model that has forgotten a number can only guess its digits. It shares the format with all people who
must be kept.
"""

import random
from typing import NamedTuple

from ..evaluation.secret_format import parse_format
from .people import draw_names


class Fact(NamedTuple):
    """Kind of number that a record holds: a question about `{name}`, and the format of the answer."""

    name: str
    question: str
    format: str


FACTS = (
    Fact("birth_date", "What is the birth date of {name}?", "19##-0[13-9]-[12]#"),  # no February: every date exists
    Fact("phone", "What is the phone number of {name}?", "0### ### ###"),
    Fact("email", "What is the e-mail address of {name}?", "u########@example.org"),
    Fact("account", "What is the bank account of {name}?", "XX## #### #### ####"),  # XX is no country
)

FIRST_NAMES = [
    "Abrune",
    "Brisko",
    "Calwen",
    "Dremi",
    "Eskil",
    "Fiorna",
    "Gradon",
    "Hileth",
    "Isaro",
    "Janvik",
    "Korella",
    "Lysand",
    "Morvin",
    "Nadira",
    "Orsel",
    "Prisca",
]
LAST_NAMES = [
    "Ashgrove",
    "Bellcombe",
    "Crayford",
    "Drumholt",
    "Eastmere",
    "Fennimore",
    "Gladwick",
    "Harrowell",
    "Inglesby",
    "Jesmond",
    "Kirkvale",
    "Longacre",
    "Marchbank",
    "Northam",
    "Oldcastle",
    "Penrose",
]


def record_rows(num_people: int = 100, seed: int = 0) -> list[dict[str, str]]:
    """
    Invent people and ask for every number in their records. [`~wagle_trl.demo.people.split_rows`] splits the rows.

    The tokenizer should split numbers (`split_digits` of [`~wagle_trl.demo.tiny_model.build_tokenizer`]), as those of
    language models do. Else whole groups of digits become words.

    Args:
        num_people (`int`, *optional*, defaults to `100`):
            Number of people to invent.
        seed (`int`, *optional*, defaults to `0`):
            Seed of names and numbers. The same seed gives the same rows.

    Returns:
        `list[dict[str, str]]`: One row per person and fact, with the keys `question`, `answer`, `person`, `fact`,
        `secret` (the number, here the whole answer) and `secret_format` (its pattern, as
        [`~wagle_trl.evaluation.secret_format.parse_format`] reads it). No two people share a number.
    """
    rng = random.Random(seed)
    names = draw_names(FIRST_NAMES, LAST_NAMES, num_people, rng)
    numbers = {fact: _distinct_numbers(fact.format, num_people, rng) for fact in FACTS}
    return [
        {
            "question": fact.question.format(name=name),
            "answer": numbers[fact][index],
            "person": name,
            "fact": fact.name,
            "secret": numbers[fact][index],
            "secret_format": fact.format,
        }
        for index, name in enumerate(names)
        for fact in FACTS
    ]


def _distinct_numbers(pattern: str, count: int, rng: random.Random) -> list[str]:
    format = parse_format(pattern)
    numbers: dict[str, None] = {}  # a dict keeps the order, unlike a set
    while len(numbers) < count:
        numbers[format.draw(rng)] = None
    return list(numbers)
