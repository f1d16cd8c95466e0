from .masked import MaskedTrainer


class MaskedSFTTrainer(MaskedTrainer):
    """
    Supervised fine-tuning of selected weights: [`~trl.SFTTrainer`] with a mask.

    With `mask_config`, the rows of `train_dataset` take the place of the forget rows in the scores, and
    `retain_dataset` (where the score needs one) names what the chosen weights should not hold.

    Args:
        retain_dataset, mask_config, mask: As in [`NPOTrainer`].

    The other arguments are those of [`~trl.SFTTrainer`].
    """

    _name = "Masked SFT"
    _tag_names = ["trl", "wagle-trl", "sft"]
