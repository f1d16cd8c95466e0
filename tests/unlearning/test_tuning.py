from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from datasets import Dataset
from torch import nn
from transformers import PrinterCallback

from wagle_trl import MaskConfig, WeightMask
from wagle_trl.comparison.goal import Goal
from wagle_trl.masks.info import MaskInfo
from wagle_trl.unlearning.trajectory import DivergedError
from wagle_trl.unlearning.tuned import merit
from wagle_trl.unlearning.tuning import tune

ROWS = Dataset.from_dict({"input_ids": [[1, 2], [3, 4]], "labels": [[-100, 2], [-100, 4]]})
OPTIONS = {"learning_rate": 1.0, "retain_weight": 1.0, "max_steps": 8, "warmup_steps": 4, "trajectory_steps": 1}
GRID = {"learning_rate": [2.0, 8.0], "retain_weight": [4.0]}  # with the own ones six candidates, in three rungs


class Trainer:
    """
    What tuning uses of a trainer. The forget probability falls by rate times steps, the retain probability with the rate over
    the retain weight, and rates of 8 diverge.
    """

    _name = "Stub"
    goal = Goal()
    eval_dataset = {"unseen": ROWS}
    train_dataset = retain_dataset = ROWS

    def __init__(self, made, mask_config=None, **options):
        self.made, self.mask_config, self.mask, self.callbacks = made, mask_config, None, [PrinterCallback()]
        self.args = SimpleNamespace(**OPTIONS | {"num_train_epochs": 3, "disable_tqdm": True, "begin": 1.0} | options)
        self.args.to_dict = lambda: {k: v for k, v in vars(self.args).items() if k != "to_dict"}
        self.model = nn.Linear(2, 2, bias=False)
        nn.init.ones_(self.model.weight)
        self.state = SimpleNamespace(log_history=[], global_step=0)
        self.callback_handler, self.remove_callback = self, self.callbacks.remove
        self.add_callback = self.callbacks.append

    def compute_mask(self):
        self.made["mask"] += 1
        self.mask = WeightMask.from_dense({"weight": self.model.weight > 0}, MaskInfo(score="random"))
        self.mask.save(self.args.output_dir)

    def train(self):
        if self.made["train"] == self.made["stop"]:
            raise KeyboardInterrupt
        self.made["train"] += 1
        assert (self.mask is None) == (self.mask_config is None)
        assert not any(isinstance(callback, PrinterCallback) for callback in self.callbacks)
        rate, length = self.args.learning_rate, self.args.max_steps
        self.made[length, self.args.warmup_steps] += 1
        for step in range(length + 1):
            self.state.global_step = step
            if step and rate == 8.0:
                raise DivergedError("forget is NaN after step 1")
            forget, retain = max(0.0, self.args.begin - rate * step / 8), 1 - rate / self.args.retain_weight / 100
            logged = {"step": step, "forget_probability": forget, "retain_probability": retain}
            self.state.log_history.append(logged | {"unseen_probability": 0.5})


@pytest.fixture
def made():
    """How many trainers, trainings and masks there were, and after how many trainings to interrupt."""
    return Counter(stop=-1)


@pytest.fixture
def tuned(made, tmp_path):
    def run(grid=GRID, mask_config=None, folder="tune", **own):
        def make(**options):
            config = mask_config and replace(
                mask_config, **{name: options.pop(name) for name in list(options) if name.startswith("mask_")}
            )
            return Trainer(made, config, output_dir=str(tmp_path / "out"), **own | options)

        return tune(make, tmp_path / folder, grid, shortest=1)

    return run


def finished(forget, retain, diverged=None):
    return {"trajectory": {"forget": [0.9, forget], "retain": [0.9, retain]}, "diverged": diverged}


def test_of_the_runs_that_forgot_the_one_that_keeps_most_is_best_and_a_diverged_one_is_last():
    reached = [finished(0.05, 0.8), finished(0.1, 0.7)]
    runs = [*reached, finished(0.2, 0.9), finished(0.3, 0.99), finished(0.01, 0.99, "NaN")]
    worst_first = runs[::-1]
    assert sorted(worst_first, key=lambda run: merit(run, 0.1), reverse=True) == runs


def test_the_table_has_every_candidate_once_with_its_longest_run(tuned):
    result = tuned()
    options = [(run["options"]["learning_rate"], run["options"]["retain_weight"]) for run in result.runs]
    assert options[0] == (2.0, 4.0)
    assert sorted(options) == [(rate, weight) for rate in (1.0, 2.0, 8.0) for weight in (1.0, 4.0)]
    assert result.best["length"] == result.default_run["length"] == 8
    assert result.defaults == {"learning_rate": 1.0, "retain_weight": 1.0}
    assert "forget is NaN" in result.runs[-1]["diverged"] and result.runs[-1]["steps"] == 1
    assert result.best["trajectory"]["unseen"] == [0.5] * 9  # shown, but it decides nothing
    assert result.verdict.startswith(
        "Better than the defaults by 0.005 (retain probability where the forget probability passed 0.1): "
        "forget 1.000 -> 0.000, retain 0.995 -> 0.995"
    )
    assert result.steps == sum([2, 2, 2, 2, 1, 1, 4, 4, 4, 8, 8])


def test_without_a_better_candidate_or_without_forgetting_the_verdict_says_so(tuned):
    only = {"learning_rate": [], "retain_weight": []}
    assert tuned(only).verdict.startswith("No candidate is better than the defaults: forget 1.000 -> 0.000")
    verdict = tuned(only, learning_rate=0.5).verdict
    assert verdict.startswith("No run forgot: the best ended at forget 1.000 -> 0.500")
    assert verdict.endswith("or let runs be longer.")  # `max_steps` decides here, no number of epochs
    assert tuned(only, begin=0.1).verdict == "Nothing to forget: the forget rows begin at 0.100, not above 0.1."
    assert tuned({"retain_weight": []}, learning_rate=0.8).verdict.startswith(
        "Better than the defaults, which did not"
    )


def test_learning_rates_around_the_own_one_and_three_retain_weights_are_the_default_grid(tuned):
    runs = tuned(None, learning_rate=0.4).runs
    assert {run["options"]["learning_rate"] for run in runs} == {0.1, 0.2, 0.4, 0.8, 1.6}
    assert {run["options"]["retain_weight"] for run in runs} == {1.0, 5.0, 20.0}


def test_the_warm_up_is_the_same_share_of_every_run_also_where_it_is_tuned(tuned, made):
    tuned()
    assert {key for key in made if isinstance(key, tuple)} == {(2, 1), (4, 2), (8, 4)}
    tuned({"learning_rate": [], "retain_weight": [], "warmup_steps": [0.25, 8]}, folder="warm-up")
    assert made[4, 0.25] and made[4, 4]


def test_values_that_are_lists_can_be_tuned_and_are_found_again(tuned, made):
    grid = {"learning_rate": [], "retain_weight": [], "mask_scope": [("weight",)]}
    result = tuned(grid, MaskConfig(mask_score="random"))
    assert [run["options"]["mask_scope"] for run in result.runs] == [None, ["weight"]]
    assert tuned(grid, MaskConfig(mask_score="random", mask_scope=("weight",))).default_run
    made["train"] = 0
    assert tuned(grid, MaskConfig(mask_score="random")) == result and made["train"] == 0


def test_each_mask_is_computed_once(tuned, made):
    grid = {"retain_weight": [], "learning_rate": [2.0], "mask_density": [0.5], "mask_score": ["gradient"]}
    result = tuned(grid, MaskConfig(mask_score="random"))
    assert made["mask"] == result.masks == 4 and made["train"] == 8 + 4 + 2
    best = result.best["options"]
    assert result.mask.name.startswith(f"{best['mask_score']}-{best['mask_density']}-")
    assert WeightMask.load(result.mask).num_selected == 4
    tuned(grid | {"learning_rate": [2.0, 0.1]}, MaskConfig(mask_score="random"))  # more of the same
    assert made["mask"] == 4
    tuned(grid, MaskConfig(mask_score="random", mask_seed=1))
    assert made["mask"] == 8


def test_a_damaged_mask_is_computed_again(tuned, made, caplog):
    mask = tuned({"retain_weight": []}, MaskConfig()).mask / "wagle_mask.safetensors"
    mask.write_bytes(mask.read_bytes()[:-1])
    tuned({"retain_weight": [3.0]}, MaskConfig())
    assert made["mask"] == 2 and "Computing it again" in caplog.text


@pytest.mark.parametrize("after", [0, 1, 7, 10])
def test_after_an_interruption_the_same_call_goes_on_to_the_same_result(after, tuned, made):
    made["stop"] = after
    with pytest.raises(KeyboardInterrupt):
        tuned()
    made["stop"] = -1
    result = tuned()
    assert made["train"] == 11  # none twice
    assert tuned() == result and made["train"] == 11
    whole = tuned(folder="whole")
    assert (whole.runs, whole.steps) == (result.runs, result.steps)


@pytest.mark.parametrize("change", [{"max_steps": 16, "warmup_steps": 8}, {"weight_decay": 0.1}])
def test_runs_of_other_options_are_left_alone_and_not_taken(change, tuned, made, caplog):
    result = tuned()
    tuned(**change)
    assert made["train"] > 11 and "starting afresh" in caplog.text
    made["train"] = 0
    assert tuned() == result and made["train"] == 0


def test_options_that_change_no_weight_do_not_start_afresh(tuned, made):
    result = tuned()
    assert tuned(logging_steps=3, disable_tqdm=False) == result and made["train"] == 11


def test_a_damaged_record_is_dropped_and_its_run_is_made_again(tuned, made, tmp_path):
    result = tuned()
    (path,) = (tmp_path / "tune").glob("*.jsonl")
    key, first, second, *others = path.read_text().splitlines(keepends=True)
    path.write_text("".join([key, first.replace('"retain"', '"retained"'), second[:-9] + "\n", *others]))
    assert tuned() == result and made["train"] == 13


def test_where_all_diverge_the_error_says_why(tuned):
    with pytest.raises(ValueError, match=r"All 4 candidates diverged; lower learning_rate. The first: forget is NaN"):
        tuned({"learning_rate": [], "retain_weight": [2.0, 3.0, 4.0]}, learning_rate=8.0)


@pytest.mark.parametrize("name", ["mask_score", "no_such_option"])
def test_what_is_no_option_cannot_be_tuned(name, tuned):
    with pytest.raises(ValueError, match=f"'{name}' cannot be tuned"):
        tuned({name: ["gradient"]})


def test_without_measurements_there_is_nothing_to_rank(tuned):
    with pytest.raises(ValueError, match="trajectory_steps must not be 0"):
        tuned(trajectory_steps=0)
