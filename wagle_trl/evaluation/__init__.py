"""Evaluation of unlearning.

[`~wagle_trl.evaluation.metrics`], [`~wagle_trl.evaluation.memorization`], [`~wagle_trl.evaluation.secrets`] and
[`~wagle_trl.evaluation.membership`] compute without a model. [`~wagle_trl.evaluation.tofu`] and [`~wagle_trl.evaluation.drift`] run models.
[`~wagle_trl.evaluation.suite`] combines all of them.
"""
