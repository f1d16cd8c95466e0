"""Unlearning trainers, one file per objective."""

from .base import UnlearningConfig, UnlearningTrainer
from .grad_diff import GradDiffConfig, GradDiffTrainer
from .npo import NPOConfig, NPOTrainer

__all__ = ["GradDiffConfig", "GradDiffTrainer", "NPOConfig", "NPOTrainer", "UnlearningConfig", "UnlearningTrainer"]
