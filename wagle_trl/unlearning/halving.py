"""
Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): short runs of all candidates, runs of twice the length of the
better half, and so on. Every run starts from the beginning.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Candidate = TypeVar("Candidate")
Run = TypeVar("Run")


def rungs(candidates: int, length: int, shortest: int) -> list[tuple[int, int]]:
    """
    Plan how many candidates run for how many steps, until two are left.

    Args:
        candidates (`int`): Number of candidates.
        length (`int`): Steps of a whole run, which those of the last rung take.
        shortest (`int`): Steps that a run takes at least, unless `length` is less.

    Returns:
        `list[tuple[int, int]]`: Number of candidates and of steps of each rung.
    """
    lengths = [length]
    while len(lengths) < (candidates - 1).bit_length() and lengths[0] // 2 >= shortest:
        lengths.insert(0, lengths[0] // 2)
    return [(math.ceil(candidates / 2**rung), steps) for rung, steps in enumerate(lengths)]


def successive_halving(
    candidates: Sequence[Candidate],
    plan: Sequence[tuple[int, int]],
    run: Callable[[Candidate, int], Run],
    merit: Callable[[Run], Any],
) -> list[Run]:
    """
    Run candidates as planned.

    Args:
        candidates (`list`): Different candidates. The first has a place in every rung, to compare the best with, and
            wins ties.
        plan (`list[tuple[int, int]]`): Rungs, of [`rungs`].
        run (callable): Function of a candidate and a number of steps.
        merit (callable): Function of a run; more is better.

    Returns:
        `list`: The longest run of every candidate, best first.
    """
    first, *others = candidates
    dropped: list[Run] = []
    ranked: list[tuple[Candidate, Run]] = []
    for count, steps in plan:
        left = [(candidate, result) for candidate, result in ranked if candidate != first]
        dropped = [result for _, result in left[count - 1 :]] + dropped
        others = [candidate for candidate, _ in left[: count - 1]] if ranked else others
        results = [(candidate, run(candidate, steps)) for candidate in (first, *others)]
        ranked = sorted(results, key=lambda pair: merit(pair[1]), reverse=True)
    return [result for _, result in ranked] + dropped
