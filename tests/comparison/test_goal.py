import pytest

from wagle_trl.comparison.goal import Goal, points

BEFORE = {"forget": 0.9, "retain": 1.0}


def measured(forget, retain=None):
    return points({"forget": forget, "retain": retain or [1.0] * len(forget)})


def test_it_is_reached_when_both_are_there_at_the_same_time():
    goal = Goal(forget_probability=0.1, retain_share=0.5)
    reached = [
        goal.is_reached({"forget": forget, "retain": retain}, {"forget": 0.9, "retain": 0.8})
        for forget, retain in ((0.1, 0.4), (0.11, 0.4), (0.1, 0.39))
    ]
    assert reached == [True, False, False]


def test_kept_ranks_what_has_forgotten_by_what_it_kept_and_all_others_below_by_what_is_left_to_forget():
    best_first = [(0.1, 0.9), (0.0, 0.3), (0.09, 0.0), (0.11, 1.0), (0.5, 1.0), (1.0, 1.0)]
    rates = [Goal().kept({"forget": forget, "retain": retain}) for forget, retain in best_first]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == len(rates)
    assert rates[:2] == [0.9, 0.3] and rates[4] == pytest.approx(-0.4)


@pytest.mark.parametrize(
    ("forget", "retain", "still"),
    [
        ([0.9], None, 0),
        ([0.9, 0.8999, 0.8998], None, 2),
        ([0.9, 0.7, 0.7], None, 1),
        ([0.9, 0.896, 0.891, 0.887], None, 1),  # 1 % of what is left in two measurements
        ([0.9, 0.5, 0.9, 0.5], None, 2),
        ([0.9, 0.9, 0.9], [1.0, 0.5, 0.9], 2),  # of the retain rows only what is lost after forgetting is mended
        ([0.9, 0.05, 0.05, 0.05], [1.0, 0.5, 0.6, 0.7], 0),
        ([0.9, 0.05, 0.05, 0.05], [1.0, 0.5, 0.5, 0.4], 2),
        ([0.9, 0.2, 0.05, 0.2], [1.0, 1.0, 0.5, 0.9], 0),  # forgets less and mends more
    ],
)
def test_it_counts_the_last_measurements_in_which_nothing_moved(forget, retain, still):
    assert Goal().still(measured(forget, retain), BEFORE) == still


def test_it_is_taken_from_options_and_zero_is_no_level():
    assert (
        Goal.of({}) == Goal.of({"stop_forget_probability": 0}) == Goal.of({"stop_forget_probability": None}) == Goal()
    )
    options = {"stop_forget_probability": 0.2, "stop_retain_probability": 0.0, "stop_patience": 3}
    assert Goal.of(options) == Goal(0.2, 0.0, 3)
