"""The metric that chooses the best model, checked before any work."""

import pytest

BEST = dict(save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True)
REMEMBERS = {
    "loss": {"metric_for_best_model": "eval_forget_loss"},
    "loss without prefix": {"metric_for_best_model": "forget_loss", "greater_is_better": False},
    "accuracy": {"metric_for_best_model": "eval_forget_mean_token_accuracy"},
    "entropy": {"metric_for_best_model": "eval_forget_entropy", "greater_is_better": False},
}


@pytest.fixture
def sets(forget_rows, retain_rows):
    return {"forget": forget_rows, "unseen_retain": retain_rows, "retain": retain_rows}


@pytest.mark.parametrize("kind", ["npo", "masked_sft"])
@pytest.mark.parametrize("options", REMEMBERS.values(), ids=REMEMBERS)
def test_a_metric_that_keeps_what_remembers_most_is_refused(kind, options, make_trainer, sets):
    right = options.get("greater_is_better") is False or options["metric_for_best_model"].endswith("loss")
    with pytest.raises(ValueError, match=f"remembers most of the forget rows; set greater_is_better={right}, or"):
        make_trainer(kind, eval_dataset=sets, **BEST, **options)


def test_so_it_is_under_whatever_name_the_forget_rows_go(make_trainer, forget_rows, retain_rows):
    for evaluated, metric in ((forget_rows, None), ({"mine": forget_rows, "retain": retain_rows}, "eval_mine_loss")):
        with pytest.raises(ValueError, match="remembers most"):
            make_trainer(eval_dataset=evaluated, metric_for_best_model=metric, **BEST)


ACCEPTED = {
    "forget loss, greater": {"metric_for_best_model": "eval_forget_loss", "greater_is_better": True},
    "retain loss": {"metric_for_best_model": "eval_retain_loss"},
    "unseen": {"metric_for_best_model": "unseen_retain_mean_token_accuracy"},
    "forget entropy": {"metric_for_best_model": "eval_forget_entropy"},
}


@pytest.mark.parametrize("options", ACCEPTED.values(), ids=ACCEPTED)
def test_other_metrics_are_taken(options, make_trainer, sets):
    make_trainer(eval_dataset=sets, **BEST, **options)


@pytest.mark.parametrize("metric", [None, "eval_loss", "eval_test_loss"])
def test_a_metric_of_no_set_is_refused_and_those_that_there_are_named(metric, make_trainer, sets):
    choices = r"kept, eval_forget_loss \(with greater_is_better\), eval_unseen_retain_loss, eval_retain_loss\."
    with pytest.raises(ValueError, match=f"which is of none of the evaluation sets; choose one of {choices}"):
        make_trainer(eval_dataset=sets, metric_for_best_model=metric, **BEST)


def test_without_a_best_model_nothing_is_asked(make_trainer, sets):
    make_trainer(eval_dataset=sets, eval_strategy="steps", eval_steps=1)
