"""Learning rate and length of unlearning where none is given: they depend on what trains, and on how many rows."""

import math

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

DENSE = 5e-5
ADAPTERS = 2.5e-4
WIDTH = 256  # hidden size of the models that these were found on
STEPS = 200
EPOCHS = 5


def default_learning_rate(model: PreTrainedModel | PeftModel, density: float | None = None) -> float:
    r"""
    Choose a learning rate by what trains.

    AdamW moves every weight by about the rate per step. So \( d \cdot n \) selected weights move as far together as all
    \( n \) do at a rate \( 1 / \sqrt{d} \) times as high. Of a wider model every output sums more weights that move
    together, and the rate falls as 1 / hidden size (maximal update parametrization, arXiv 2203.03466, table 3).

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to train. The rate of adapters does not depend on its width.
        density (`float`, *optional*):
            Selected share of the weights; `None` without a mask.

    Returns:
        `float`: Peak learning rate of AdamW, to two digits.
    """
    if isinstance(model, PeftModel):
        return ADAPTERS
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, Tensor)  # quantized ones, too
    width = embeddings.shape[-1]
    return float(f"{DENSE * WIDTH / width / math.sqrt(density or 1.0):.2g}")


def default_num_train_epochs(num_rows: int, args: TrainingArguments) -> float:
    """
    Choose how often the forget rows are seen: as often as makes `STEPS` steps, and at least `EPOCHS` times. Adam forgets
    a few rows in hardly fewer steps than many.

    Args:
        num_rows (`int`): Number of forget rows.
        args ([`~transformers.TrainingArguments`]): Batch size, accumulation and number of processes.

    Returns:
        `float`: A whole number of epochs.
    """
    return float(max(EPOCHS, math.ceil(STEPS / steps_per_epoch(num_rows, args))))


def steps_per_epoch(num_rows: int, args: TrainingArguments) -> int:
    """Count the optimizer steps of one pass over `num_rows` rows, at least 1."""
    rows_per_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    return max(1, math.ceil(num_rows / max(1, rows_per_step)))
