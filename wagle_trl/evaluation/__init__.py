"""Evaluation of unlearning: [`~wagle_trl.evaluation.metrics`] knows numbers, [`~wagle_trl.evaluation.tofu`] models.

Nothing is imported here, so that the metrics can be used on saved records without loading PyTorch.
"""
