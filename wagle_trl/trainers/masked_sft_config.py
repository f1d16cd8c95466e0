from dataclasses import dataclass

from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig


@dataclass
class MaskedSFTConfig(SFTConfig):
    r"""
    Configuration class for the [`MaskedSFTTrainer`]: that of [`~trl.SFTConfig`], but `bf16` defaults to whether the
    device has it, so that the same script runs on a CPU.
    """

    def __post_init__(self):
        if self.bf16 is None and not is_torch_bf16_gpu_available():
            self.bf16 = False
        super().__post_init__()
