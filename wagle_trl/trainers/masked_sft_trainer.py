from datasets import Dataset

from .checks import check_rows
from .masked import MaskedTrainer


class MaskedSFTTrainer(MaskedTrainer):
    """
    Supervised fine-tuning of selected weights: [`~trl.SFTTrainer`] with a mask.

    To teach refusals, for example, pass them as `train_dataset` and the questions with their old answers as
    `forget_dataset`: the weights that hold the old answers are the ones that learn.

    Args:
        forget_dataset ([`~datasets.Dataset`], *optional*):
            Rows whose weights the mask of `mask_config` looks for; by default those of `train_dataset`.
        retain_dataset ([`~datasets.Dataset`], *optional*):
            Rows whose weights it should spare, for scores that compare two sets. Not trained on.
        mask_config, mask: As in [`NPOTrainer`].

    The other arguments are those of [`~trl.SFTTrainer`].
    """

    _name = "Masked SFT"
    _tag_names = ["trl", "wagle-trl", "sft"]

    def __init__(self, model, args=None, *positional, forget_dataset: Dataset | None = None, **kwargs):
        check_rows(forget_dataset, "forget_dataset")
        super().__init__(model, args, *positional, **kwargs)
        self.given.rows["forget"] = forget_dataset
        self.forget_dataset = None if forget_dataset is None else self._prepare_further(forget_dataset, "forget")

    @property
    def attributed_dataset(self) -> Dataset:
        return self.train_dataset if self.forget_dataset is None else self.forget_dataset
