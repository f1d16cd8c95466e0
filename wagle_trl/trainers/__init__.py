from ..unlearning.base import UnlearningConfig, UnlearningTrainer
from ..unlearning.grad_diff import GradDiffTrainer
from ..unlearning.grad_diff_config import GradDiffConfig
from ..unlearning.npo import NPOTrainer
from ..unlearning.npo_config import NPOConfig
from .masked import MaskedTrainer
from .masked_sft_config import MaskedSFTConfig
from .masked_sft_trainer import MaskedSFTTrainer

__all__ = [
    "GradDiffConfig",
    "GradDiffTrainer",
    "MaskedSFTConfig",
    "MaskedSFTTrainer",
    "MaskedTrainer",
    "NPOConfig",
    "NPOTrainer",
    "UnlearningConfig",
    "UnlearningTrainer",
]
