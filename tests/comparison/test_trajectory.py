import pytest

from wagle_trl.comparison.trajectory import matched, trajectory

CURVE = {
    "step": [0, 10, 20, 30],
    "forget": [0.9, 0.5, 0.1, 0.2],
    "retain": [1.0, 0.8, 0.4, 0.6],
    "unseen_retain": [1.0, 0.9, 0.7, 0.8],
}


@pytest.mark.parametrize(
    ("level", "step", "retain", "unseen_retain"),
    [
        (0.3, 15, 0.6, 0.8),  # half way from 0.5 to 0.1
        (0.2, 17.5, 0.5, 0.75),  # three quarters; the later measurement at 0.2 does not count
        (0.8, 2.5, 0.95, 0.975),
        (0.5, 10, 0.8, 0.9),  # a measurement itself
        (0.1, 20, 0.4, 0.7),
    ],
)
def test_what_is_kept_at_a_level_is_interpolated_at_the_first_crossing(level, step, retain, unseen_retain):
    assert matched(CURVE, level) == pytest.approx({"step": step, "retain": retain, "unseen_retain": unseen_retain})


@pytest.mark.parametrize("level", [0.05, 0.9, 0.95], ids=["never reached", "at the first step", "before it"])
def test_a_level_without_a_crossing_has_nothing_to_compare(level):
    assert matched(CURVE, level) is None


def test_only_the_sets_that_were_watched_are_there():
    assert matched({"step": [0, 1], "forget": [1.0, 0.0]}, 0.25) == {"step": 0.75}


def test_a_run_that_watched_nothing_has_an_empty_trajectory():
    columns = trajectory([{"loss": 1.0, "step": 1}])
    assert columns == {"step": [], "forget": []}
    assert matched(columns, 0.5) is None


def test_a_trajectory_is_the_probabilities_among_the_other_logs():
    history = [
        {"forget_probability": 0.9, "retain_probability": 1.0, "unseen_retain_probability": 0.8, "step": 0},
        {"loss": 2.0, "forget_loss": 1.0, "epoch": 1.0, "step": 5},
        {"forget_probability": 0.1, "retain_probability": 0.7, "unseen_retain_probability": 0.6, "step": 5},
        {"train_runtime": 3.0, "step": 5},
    ]
    assert trajectory(history) == {
        "step": [0, 5],
        "forget": [0.9, 0.1],
        "retain": [1.0, 0.7],
        "unseen_retain": [0.8, 0.6],
    }


def test_a_set_called_step_does_not_take_the_place_of_the_steps():
    history = [{"forget_probability": 0.9, "step_probability": 0.8, "step": 5}]
    assert trajectory(history) == {"step": [5], "forget": [0.9]}


def test_a_set_that_was_not_always_watched_is_left_out():
    """A run that went on with other sets: columns stay of one length."""
    history = [
        {"forget_probability": 0.9, "retain_probability": 1.0, "step": 0},
        {"forget_probability": 0.5, "retain_probability": 0.9, "unseen_retain_probability": 0.8, "step": 5},
    ]
    assert list(trajectory(history)) == list(trajectory(history[::-1])) == ["step", "forget", "retain"]
