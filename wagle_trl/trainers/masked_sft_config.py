from dataclasses import dataclass, field

from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig


@dataclass
class MaskedSFTConfig(SFTConfig):
    r"""
    Configuration class for the [`MaskedSFTTrainer`]: that of [`~trl.SFTConfig`], but `bf16` defaults to whether the
    device has it, so that the same script runs on a CPU.

    Parameters:
        accumulator_dtype (`str`, *optional*, defaults to `"float32"`):
            In what the gradients of selected weights are added up over `gradient_accumulation_steps`. `"bfloat16"`
            rounds every sum of bf16 weights' gradients, as torch does without a mask, in half the memory.
        compile_layers (`bool`, *optional*, defaults to `False`):
            Compile the transformer layers with `torch.compile`, which compiles equal layers once; `torch_compile`
            compiles the model as a whole.
        save_delta (`bool`, *optional*, defaults to `False`):
            Let `save_model` also write `wagle_delta.safetensors`, the new values of the selected weights, see
            [`SparseDelta`]; needs a mask.
        hash_forget_set (`bool`, *optional*, defaults to `False`):
            Name no data set in the card and in `wagle_report.json`: only numbers of rows, and digests that nobody can
            compare without the key, which stays in `wagle_rows.key` in the output folder.
    """

    accumulator_dtype: str = field(
        default="float32",
        metadata={
            "help": "In what the gradients of selected weights are added up over `gradient_accumulation_steps`. "
            "'bfloat16' rounds every sum of bf16 weights' gradients, as torch does without a mask, in half the memory.",
            "choices": ["float32", "bfloat16"],
        },
    )
    compile_layers: bool = field(
        default=False,
        metadata={
            "help": "Compile the transformer layers with `torch.compile`, which compiles equal layers once; "
            "`torch_compile` compiles the model as a whole."
        },
    )
    save_delta: bool = field(
        default=False,
        metadata={
            "help": "Beside the model also save wagle_delta.safetensors: the new values of the selected weights, which "
            "make the model of its base. Needs a mask."
        },
    )
    hash_forget_set: bool = field(
        default=False,
        metadata={
            "help": "Name no data set in the card and the report: only numbers of rows, and digests that nobody can compare "
            "without the key, which stays in wagle_rows.key in the output folder."
        },
    )

    def __post_init__(self):
        if self.bf16 is None and not is_torch_bf16_gpu_available():
            self.bf16 = False
        super().__post_init__()
