"""The optimizer of a mask, made from a trainer's options, and its hooks in the training loop."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import TrainerCallback, TrainingArguments

from ..masks.mask import WeightMask
from ..masks.scope import embedding_parameters
from ..optim.masked_adamw import STATE_BITS, AccumulatorDtype, MaskedAdamW
from .trainer_base import MaskedTrainerBase


def masked_optimizer(
    model: nn.Module, mask: WeightMask, decayed: set[str], args: TrainingArguments, accumulator_dtype: AccumulatorDtype
) -> MaskedAdamW:
    """
    Create the AdamW of the weights that a mask selects.

    Args:
        model (`torch.nn.Module`): Model.
        mask ([`WeightMask`]): Its mask.
        decayed (`set[str]`): Names of the parameters that decay.
        args ([`~transformers.TrainingArguments`]): Options of the optimizer.
        accumulator_dtype (`str`): As in [`~trainers.mask_options.MaskOptions`].
    """
    state_bits = STATE_BITS[args.optim]
    # A row of an embedding has gradients only where its token occurs: too wide a range for 8 bits
    precise = embedding_parameters(model) if state_bits == 8 else set()
    groups: dict[tuple[bool, bool], list] = {}
    # All parameters, though the optimizer skips those that the mask does not name: two parameters may share a weight
    for name, parameter in model.named_parameters():
        groups.setdefault((name not in decayed, parameter in precise), []).append((name, parameter))
    optimizer = MaskedAdamW(
        [
            {
                "params": groups[undecayed, is_precise],
                "weight_decay": 0.0 if undecayed else args.weight_decay,
                "state_bits": 32 if is_precise else state_bits,
            }
            for undecayed, is_precise in sorted(groups)
        ],
        mask,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        accumulator_dtype=accumulator_dtype,
    )
    if args.gradient_accumulation_steps > 1:
        optimizer.prepare_accumulation()
    return optimizer


@contextmanager
def only_masked_weights_trainable(model: nn.Module, mask: WeightMask | None) -> Iterator[None]:
    """Freeze parameters outside the mask, so that the backward pass computes no gradients for them."""
    frozen = [
        parameter
        for name, parameter in model.named_parameters()
        if mask is not None and parameter.requires_grad and name not in mask.bits
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


class MaskedTraining(TrainerCallback):
    """Attaches the optimizer's hooks when training begins, and clips before each step."""

    def __init__(self, trainer: MaskedTrainerBase):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        optimizer = self.trainer._masked_optimizer
        if optimizer is None:
            return
        optimizer.zero_grad()  # an interrupted run may have left gradients in the accumulators
        # DDP reduces gradients after these hooks would have freed them: there, `step` compresses the gradients
        if args.world_size == 1:
            optimizer.attach_hooks()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        optimizer = self.trainer._masked_optimizer
        if optimizer is not None:
            # The trainer's own clipping finds no gradients: they are in the accumulators
            max_norm = args.max_grad_norm if args.max_grad_norm > 0 else float("inf")
            optimizer.clip_grad_norm_(max_norm)
