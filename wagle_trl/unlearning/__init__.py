"""Forgetting rows and keeping others: what all objectives share."""

from .base import UnlearningTrainer
from .config import UnlearningConfig

__all__ = ["UnlearningConfig", "UnlearningTrainer"]
