from .grad_diff_config import GradDiffConfig
from .grad_diff_trainer import GradDiffTrainer
from .masked import MaskedTrainer
from .masked_sft_config import MaskedSFTConfig
from .masked_sft_trainer import MaskedSFTTrainer
from .npo_config import NPOConfig
from .npo_trainer import NPOTrainer
from .unlearning import UnlearningConfig, UnlearningTrainer

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
