"""The learning rate of unlearning where none is given: it depends on what trains."""

import math

from peft import PeftModel
from transformers import PreTrainedModel

DENSE = 1e-4
ADAPTERS = 1e-3
WIDTH = 256  # hidden size of the models that these were found on


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
    width = model.config.get_text_config().hidden_size
    return float(f"{DENSE * WIDTH / width / math.sqrt(density or 1.0):.2g}")
