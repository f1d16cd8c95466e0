"""The two worlds of `wagle demo`, and the options with which each is unlearned."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..attribution.config import MaskConfig
from .people import people_rows
from .records import record_rows

DENSITY = 0.05
_RANDOM = MaskConfig(mask_score="random", mask_density=DENSITY)
_WAGLE = MaskConfig(mask_score="wagle", mask_density=DENSITY)


class Arm(NamedTuple):
    """
    Way to unlearn: which weights may move, and the rate and retain weight that `wagle tune npo --max_steps 150` chose for it
    on seed 0, from three rates and the retain weights 5, 10 and 20.
    """

    mask: MaskConfig | None
    learning_rate: float
    retain_weight: float


@dataclass(frozen=True)
class World:
    """
    Rows that a small model learns by heart, and the ways to unlearn some of them.

    Args:
        title (`str`): What the rows are.
        make_rows (callable): Number of people and seed to rows.
        split_digits (`bool`): As in [`~wagle_trl.demo.tiny_model.build_tokenizer`].
        epochs (`int`): Passes over all rows after which the model knows them.
        arms (`dict[str, Arm]`): Ways to unlearn, by name.
    """

    title: str
    make_rows: Callable[[int, int], list[dict[str, str]]]
    split_digits: bool
    epochs: int
    arms: dict[str, Arm]


WORLDS = {
    "people": World(
        "Facts about made-up people",
        people_rows,
        split_digits=False,
        epochs=40,
        arms={
            "dense": Arm(None, 2e-4, 20.0),
            "random": Arm(_RANDOM, 4e-3, 20.0),
            "masked": Arm(_WAGLE, 1.8e-3, 20.0),
        },
    ),
    "records": World(
        "Numbers of made-up people",
        record_rows,
        split_digits=True,
        epochs=50,
        arms={
            "dense": Arm(None, 4e-4, 20.0),
            "random": Arm(_RANDOM, 2e-3, 20.0),
            "masked": Arm(_WAGLE, 4.5e-4, 20.0),
        },
    ),
}
