"""Unlearning trainers, one file per objective."""

from .base import UnlearningTrainer
from .config import UnlearningConfig
from .grad_diff import GradDiffConfig, GradDiffTrainer
from .npo import NPOConfig, NPOTrainer

__all__ = ["GradDiffConfig", "GradDiffTrainer", "NPOConfig", "NPOTrainer", "UnlearningConfig", "UnlearningTrainer"]
