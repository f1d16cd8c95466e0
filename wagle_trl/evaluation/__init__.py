"""Evaluation of unlearning.

[`~wagle_trl.evaluation.metrics`], [`~wagle_trl.evaluation.memorization`] and [`~wagle_trl.evaluation.membership`] know
numbers, [`~wagle_trl.evaluation.tofu`] and [`~wagle_trl.evaluation.drift`] models;
[`~wagle_trl.evaluation.suite`] is all of it.
"""
