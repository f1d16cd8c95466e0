from dataclasses import dataclass

from .base import UnlearningConfig


@dataclass
class GradDiffConfig(UnlearningConfig):
    r"""
    Configuration class for the [`GradDiffTrainer`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the cross-entropy on the retain rows.

    The rest is that of [`~trl.SFTConfig`].
    """
