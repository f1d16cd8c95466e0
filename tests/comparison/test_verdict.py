import pytest

from wagle_trl.comparison.goal import Goal
from wagle_trl.comparison.history import History
from wagle_trl.comparison.verdict import closing_verdict, verdict

FALLING = [0.979, 0.8, 0.5, 0.3, 0.06]


def columns(forget, retain=None):
    return {"step": list(range(0, 10 * len(forget), 10)), "forget": forget, "retain": retain or [0.98] * len(forget)}


KINDS = {
    "done": (FALLING, [0.98, 0.9, 0.8, 0.9, 0.97], "forget 0.979 -> 0.06, retain 0.98 -> 0.97: done at step 40"),
    "done before": ([*FALLING, 0.01], None, "done at step 50, and first at step 40"),
    "done once": (
        FALLING,
        [0.98, 0.98, 0.98, 0.98, 0.7],
        "0.06, retain 0.98 -> 0.7: forgotten, but retain is at 0.7 of",
    ),
    "passed": ([*FALLING, 0.3], None, "done at step 40, but not in these weights: set stop_forget_probability"),
    "not kept": (
        FALLING,
        [0.98, 0.9, 0.8, 0.7, 0.71],
        "forgotten, but retain is at 0.71 of 0.98: raise retain_weight or num_train_epochs",
    ),
    "not kept, nothing moves": (
        [0.979, *[0.06] * 11],
        [0.98, *[0.71] * 11],
        "forgotten, but retain is at 0.71 of 0.98, and nothing moved for 10 measurements: raise retain_weight",
    ),
    "came back": (
        [0.979, 0.06, 0.3],
        [0.98, 0.71, 0.98],
        "forgotten at step 10, but not in these weights: set load_best_model_at_end, and metric_for_best_model to 'kept', or "
        "lower retain_weight",
    ),
    "nothing": ([0.9792, 0.9791], None, "nothing was forgotten: raise learning_rate or num_train_epochs"),
    "nothing moves": (
        [0.979] * 11,
        None,
        "nothing was forgotten, and nothing moved for 10 measurements: raise learning_rate",
    ),
    "falling": (FALLING[:-1], None, "forget 0.979 -> 0.3, retain 0.98 -> 0.98: still falling: raise num_train_epochs"),
    "halted": (
        [0.979, *[0.5] * 4],
        None,
        "forget no longer falls: raise learning_rate, or lower retain_weight",
    ),
    "halted for long": ([0.979, *[0.5] * 11], None, "forget no longer falls, and nothing moved for 10 measurements"),
    "nothing to forget": ([0.06, 0.01], None, "forget was below 0.1 from the start: check the rows, or set a lower"),
}


@pytest.mark.parametrize(("forget", "retain", "expected"), KINDS.values(), ids=KINDS)
def test_it_says_what_came_of_a_run_and_what_to_change(forget, retain, expected):
    line = verdict(columns(forget, retain))
    assert expected in line and len(line) < 200
    assert line.startswith(f"forget {forget[0]:.3g} -> {forget[-1]:.3g}, retain 0.98 -> ")


def test_levels_are_those_of_the_goal():
    assert "still falling" in verdict(columns(FALLING), Goal(forget_probability=0.05))
    assert "done at step 40" in verdict(columns(FALLING, [0.98, 0.9, 0.8, 0.7, 0.6]), Goal(retain_share=0.6))


def report(**others):
    entries = [
        {"forget_probability": forget, "retain_probability": 0.98, "step": step}
        for step, forget in enumerate([0.979, 0.05, 0.5])
    ]
    return {"steps": 2, "loaded_step": None, "log_history": entries, **others}


def of(report, **options):
    return closing_verdict(History(report), options)


def test_after_loading_the_best_model_it_speaks_of_that_one():
    kept = report(loaded_step=1)
    kept["log_history"].append({"forget_probability": 0.05, "retain_probability": 0.97, "step": 2, "loaded_step": 1})
    assert of(kept) == "forget 0.979 -> 0.05, retain 0.98 -> 0.97 (step 1, loaded as the best): done at step 1"
    lost = report(loaded_step=0)
    lost["log_history"].append({"forget_probability": 0.9, "retain_probability": 0.98, "step": 2, "loaded_step": 0})
    assert of(lost).endswith("done at step 1, but not in these weights: set metric_for_best_model to 'kept'")


def test_steps_are_counted_over_all_calls_of_train():
    first = {"steps": 2, "log_history": report()["log_history"]}
    assert "done at step 3" in of(
        {
            "steps": 1,
            "earlier_training": [first],
            "log_history": [{"forget_probability": 0.02, "retain_probability": 0.98, "step": 1}],
        }
    )


@pytest.mark.parametrize(
    "without",
    [
        {"log_history": []},
        {"log_history": report()["log_history"][1:]},
        {"fingerprint": "a", "measured_fingerprint": "b"},
        {"steps": 5},
        {"log_history": [{"forget_probability": 0.9, "step": 0}], "steps": 0},
    ],
    ids=["nothing measured", "no step 0", "other weights", "other step", "no retain rows"],
)
def test_there_is_none_without_measurements_of_both_ends(without):
    assert of(report(**without)) is None


def test_a_run_of_a_number_of_steps_is_made_longer_by_steps():
    falling = report()
    falling["log_history"][1]["forget_probability"] = 0.7
    assert of(falling, max_steps=2).endswith("still falling: raise max_steps")
    assert of(falling, max_steps=-1).endswith("still falling: raise num_train_epochs")
