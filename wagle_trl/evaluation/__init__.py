"""Evaluation of unlearning.

[`~wagle_trl.evaluation.metrics`], [`~wagle_trl.evaluation.memorization`] and [`~wagle_trl.evaluation.membership`]
compute with numbers alone. [`~wagle_trl.evaluation.tofu`] and [`~wagle_trl.evaluation.drift`] run models.
[`~wagle_trl.evaluation.suite`] combines all of them.
"""
