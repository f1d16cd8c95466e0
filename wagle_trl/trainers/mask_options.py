"""Options of training with a mask, for the configuration of any trainer."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from ..optim.masked_adamw import AccumulatorDtype


@dataclass
class MaskOptions:
    r"""
    Goes before the base trainer's configuration in the bases of a dataclass, as in
    `class MyConfig(MaskOptions, DPOConfig)`.

    Parameters:
        accumulator_dtype (`str`, *optional*, defaults to `"float32"`):
            Dtype in which the gradients of selected weights are added up over `gradient_accumulation_steps`.
            `"bfloat16"` halves their memory and rounds every sum of bf16 weights' gradients, as torch does without a
            mask.
        compile_layers (`bool`, *optional*, defaults to `False`):
            Compile the transformer layers with `torch.compile`, which compiles equal layers once; `torch_compile`
            compiles the model as a whole.
        save_delta (`bool`, *optional*, defaults to `False`):
            Save `wagle_delta.safetensors` beside the model: the new values of the selected weights, see
            [`SparseDelta`]. Needs a mask.
        hash_forget_set (`bool`, *optional*, defaults to `False`):
            Name no data set in the card and in `wagle_report.json`. They then say the number of rows and a digest that
            nobody can compare without the key, which stays in `wagle_rows.key` in the output folder.
    """

    accumulator_dtype: AccumulatorDtype = field(
        default="float32",
        metadata={
            "help": "Dtype in which the gradients of selected weights are added up over `gradient_accumulation_steps`. "
            "'bfloat16' halves their memory and rounds every sum of bf16 weights' gradients, as torch does without a mask.",
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
            "help": "Save wagle_delta.safetensors beside the model: the new values of the selected weights, which turn "
            "the base into the model. Needs a mask."
        },
    )
    hash_forget_set: bool = field(
        default=False,
        metadata={
            "help": "Name no data set in the card and the report. They then say the number of rows and a digest that nobody "
            "can compare without the key, which stays in wagle_rows.key in the output folder."
        },
    )
    # How the mask of this run was made, see `trainers.tracking.mask_settings`: no option, but trackers read it as one
    mask_settings: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | self.mask_settings  # pyright: ignore[reportAttributeAccessIssue]


def base_config(args: TrainingArguments) -> type[TrainingArguments]:
    """The class of the base trainer's own configuration, such as [`~trl.SFTConfig`]."""
    return next(kind for kind in type(args).__mro__ if not issubclass(kind, MaskOptions))
