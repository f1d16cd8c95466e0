from dataclasses import dataclass, field

from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig


@dataclass
class MaskedSFTConfig(SFTConfig):
    r"""
    Configuration class for the [`MaskedSFTTrainer`]: that of [`~trl.SFTConfig`], but `bf16` defaults to whether the
    device has it, so that the same script runs on a CPU.

    Parameters:
        compile_layers (`bool`, *optional*, defaults to `False`):
            Compile every transformer layer with `torch.compile`, one for all, where `torch_compile` compiles the model
            as a whole.
    """

    compile_layers: bool = field(
        default=False,
        metadata={
            "help": "Compile every transformer layer with `torch.compile`, one for all, where `torch_compile` compiles "
            "the model as a whole."
        },
    )

    def __post_init__(self):
        if self.bf16 is None and not is_torch_bf16_gpu_available():
            self.bf16 = False
        super().__post_init__()
