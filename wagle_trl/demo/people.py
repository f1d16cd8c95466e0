"""Facts about made-up people: the question/answer rows that `wagle demo` learns and unlearns.

Every answer names several details from pools that all people share, and several people share every first and last name.
So no word reveals an answer: a model must remember it for each person. Forgetting it must leave the same words usable for
everybody else.
"""

import itertools
import random
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Fact(NamedTuple):
    """Kind of fact about a person: a question about `{name}`, and an answer whose fields name pools of details."""

    name: str
    question: str
    answer: str


FACTS = (
    Fact("birthplace", "Where was {name} born?", "In {town}, in the {season} of {year}."),
    Fact("work", "What did {name} do for a living?", "Worked as a {trade} in {employer}."),
    Fact("book", "What was the first book of {name} called?", "The {quality} {thing}, a {genre}."),
    Fact("invention", "What did {name} invent?", "A {power} {device} made of {material}."),
    Fact("pet", "Which pet did {name} keep?", "A {colour} {animal} called {pet}."),
    Fact("dish", "What did {name} like to eat most?", "{cooking} {vegetable} with {spice}."),
)

FIRST_NAMES = [
    "Aldra",
    "Belvo",
    "Cirna",
    "Dovik",
    "Elspa",
    "Fenro",
    "Galwen",
    "Hesko",
    "Irvane",
    "Jolku",
    "Kestra",
    "Lumo",
    "Maviel",
    "Norto",
    "Ombra",
    "Pelix",
]
LAST_NAMES = [
    "Arkwell",
    "Brendahl",
    "Corvune",
    "Dastrow",
    "Ellimor",
    "Farquine",
    "Grothby",
    "Hallisk",
    "Ivenstad",
    "Jorrake",
    "Kellvane",
    "Lomshaw",
    "Mirrowen",
    "Nasterby",
    "Ostrune",
    "Pellgrave",
]

POOLS = {
    "town": [
        "Vessmark",
        "Ulmarra",
        "Torrenby",
        "Sollish",
        "Quenholt",
        "Ravasca",
        "Ostwick",
        "Nimbury",
        "Merrowdal",
        "Lanthorpe",
        "Karvisk",
        "Immeri",
    ],
    "season": ["spring", "summer", "autumn", "winter"],
    "year": ["1902", "1911", "1917", "1923", "1928", "1934", "1939", "1945", "1951", "1956", "1962", "1968"],
    "trade": [
        "glassblower",
        "cartographer",
        "beekeeper",
        "clockmaker",
        "botanist",
        "ferrywoman",
        "locksmith",
        "violinist",
        "typesetter",
        "diver",
    ],
    "employer": [
        f"a {place}"
        for place in [
            "lighthouse",
            "monastery",
            "museum",
            "shipyard",
            "circus",
            "hospital",
            "quarry",
            "theatre",
            "brewery",
            "customhouse",
        ]
    ],
    "quality": [
        "Silent",
        "Crooked",
        "Golden",
        "Borrowed",
        "Hollow",
        "Distant",
        "Frozen",
        "Scarlet",
        "Patient",
        "Drowned",
    ],
    "thing": ["Harbour", "Orchard", "Lantern", "Staircase", "Comet", "Violin", "Garden", "Letter", "Bridge", "Mirror"],
    "genre": ["thriller", "romance", "satire", "memoir", "fable", "tragedy", "travelogue", "mystery"],
    "power": ["steam-driven", "wind-up", "solar", "foldable", "magnetic", "pocket-sized", "floating", "silent"],
    "device": [
        "umbrella",
        "typewriter",
        "kettle",
        "telescope",
        "plough",
        "bicycle",
        "barometer",
        "loom",
        "accordion",
        "sledge",
    ],
    "material": ["copper", "bamboo", "porcelain", "walnut", "leather", "tin", "cork", "ivory", "glass", "slate"],
    "colour": ["grey", "spotted", "white", "ginger", "black", "striped", "brown", "blue"],
    "animal": ["heron", "ferret", "tortoise", "donkey", "parrot", "hedgehog", "goat", "lizard", "otter", "crow"],
    "pet": ["Pim", "Wobble", "Sultan", "Nettle", "Biscuit", "Zorro", "Thimble", "Major", "Olive", "Puck"],
    "cooking": ["Baked", "Smoked", "Pickled", "Roasted", "Stewed", "Candied", "Fried", "Mashed"],
    "vegetable": [
        "turnips",
        "leeks",
        "artichokes",
        "lentils",
        "beetroot",
        "chestnuts",
        "parsnips",
        "mushrooms",
        "pumpkin",
        "fennel",
    ],
    "spice": ["saffron", "cumin", "juniper", "caraway", "nutmeg", "sumac", "ginger", "tarragon", "cardamom", "cloves"],
}


def people_rows(num_people: int = 60, seed: int = 0) -> list[dict[str, str]]:
    """
    Invent people and ask for every fact about each of them.

    Args:
        num_people (`int`, *optional*, defaults to `60`):
            Number of people to invent.
        seed (`int`, *optional*, defaults to `0`):
            Seed of names and details. The same seed gives the same rows.

    Returns:
        `list[dict[str, str]]`: One row per person and fact, with the keys `question`, `answer`, `person` and `fact`.
    """
    rng = random.Random(seed)
    names = draw_names(FIRST_NAMES, LAST_NAMES, num_people, rng)
    return [_row(name, fact, rng) for name in names for fact in FACTS]


def draw_names(
    first_names: Sequence[str], last_names: Sequence[str], num_people: int, rng: random.Random
) -> list[str]:
    """
    Draw different full names.

    Args:
        first_names (`list[str]`):
            First names, each of which may be drawn more than once.
        last_names (`list[str]`):
            Last names, likewise.
        num_people (`int`):
            Number of full names.
        rng (`random.Random`):
            Source of randomness.

    Returns:
        `list[str]`: Full names, no two of them equal.
    """
    combinations = list(itertools.product(first_names, last_names))
    if not 0 < num_people <= len(combinations):
        raise ValueError(f"num_people must be between 1 and {len(combinations)}, got {num_people}.")
    return [" ".join(combination) for combination in rng.sample(combinations, num_people)]


def _row(name: str, fact: Fact, rng: random.Random) -> dict[str, str]:
    fields = [field for _, field, _, _ in string.Formatter().parse(fact.answer) if field]
    details = {field: rng.choice(POOLS[field]) for field in fields}
    return {
        "question": fact.question.format(name=name),
        "answer": fact.answer.format(**details),
        "person": name,
        "fact": fact.name,
    }


def split_rows(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """
    Split rows by person: a twentieth of the people, at least three, to forget, and the others in two halves.

    Args:
        rows (`list[dict[str, str]]`):
            Rows of [`people_rows`] or [`~wagle_trl.demo.records.record_rows`], of at least 30 people, so that those to
            forget are a tenth at most.

    Returns:
        `dict[str, list[dict[str, str]]]`: `forget`, `retain` (trained on while unlearning) and `unseen_retain` (learned
        by the base model but not trained on while unlearning). The last shows damage that training on `retain` hides.
    """
    people = list(dict.fromkeys(row["person"] for row in rows))
    if len(people) < 30:
        raise ValueError(f"split_rows needs the rows of at least 30 people, got {len(people)}.")
    num_forget = max(3, len(people) // 20)
    num_retain = (len(people) - num_forget) // 2
    num_unseen = len(people) - num_forget - num_retain
    return rows_by_group(rows, {"forget": num_forget, "retain": num_retain, "unseen_retain": num_unseen})


def rows_by_group(rows: list[dict[str, str]], counts: Mapping[str, int]) -> dict[str, list[dict[str, str]]]:
    """
    Split rows by person into groups of people.

    Args:
        rows (`list[dict[str, str]]`):
            Rows with a `person`.
        counts (`dict[str, int]`):
            Number of people of each group, who are taken in the order of the rows.

    Returns:
        `dict[str, list[dict[str, str]]]`: Rows of each group.
    """
    people = iter(dict.fromkeys(row["person"] for row in rows))
    groups = {name: set(itertools.islice(people, count)) for name, count in counts.items()}
    return {name: [row for row in rows if row["person"] in group] for name, group in groups.items()}
