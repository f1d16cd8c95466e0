from dataclasses import dataclass, field

from .base import UnlearningConfig


@dataclass
class NPOConfig(UnlearningConfig):
    r"""
    Configuration class for the [`NPOTrainer`].

    Parameters:
        beta (`float`, *optional*, defaults to `0.1`):
            Inverse temperature of NPO; as it tends to 0, NPO tends to gradient ascent.
        retain_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the cross-entropy on the retain rows.

    The rest is that of [`~trl.SFTConfig`].
    """

    beta: float = field(
        default=0.1, metadata={"help": "Inverse temperature of NPO; towards 0 it becomes gradient ascent."}
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"beta must be positive, got {self.beta}.")
