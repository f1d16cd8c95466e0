import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from wagle_trl.unlearning.halving import rungs, successive_halving


@given(st.integers(1, 200), st.integers(1, 10_000), st.integers(1, 10_000))
def test_rungs_halve_the_candidates_and_double_the_steps_up_to_a_whole_run(candidates, length, shortest):
    plan = rungs(candidates, length, shortest)
    assert plan[0][0] == candidates and plan[-1][1] == length
    for (more, short), (fewer, long) in itertools.pairwise(plan):
        assert fewer == math.ceil(candidates / 2 ** plan.index((fewer, long))) < more
        assert short == long // 2 >= shortest


def test_two_are_left_of_many():
    assert rungs(15, 400, 1) == [(15, 50), (8, 100), (4, 200), (2, 400)]
    assert rungs(15, 400, 200) == [(15, 200), (8, 400)]
    assert rungs(2, 400, 1) == [(2, 400)] and rungs(1, 400, 1) == [(1, 400)]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 64))
def test_the_best_wins_where_short_runs_tell_and_the_first_is_in_every_rung(values, shortest):
    plan, asked = rungs(len(values), 64, shortest), []
    candidates = list(range(len(values)))

    def run(candidate, steps):
        asked.append((candidate, steps))
        return candidate, steps

    ranked = successive_halving(candidates, plan, run, lambda run: values[run[0]])
    assert sorted(candidate for candidate, _ in ranked) == candidates  # each once
    assert values[ranked[0][0]] == max(values)
    if values[0] == max(values):
        assert ranked[0][0] == 0  # wins ties
    for count, steps in plan:
        assert sum(asked_steps == steps for _, asked_steps in asked) == count
        assert (0, steps) in asked
    assert all(steps == max(s for c, s in asked if c == candidate) for candidate, steps in ranked)
    lengths = [steps for _, steps in ranked]
    assert lengths == sorted(lengths, reverse=True)
