from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..files.run_folder import REFERENCE_FILE
from ..files.tensor_file import TensorFile, write_tensors
from ..losses.objectives import npo_loss
from .base import Counts, UnlearningConfig, UnlearningTrainer

REFERENCE_COLUMN = "reference_log_probs"


@dataclass
class NPOConfig(UnlearningConfig):
    r"""
    Configuration class for the [`NPOTrainer`].

    Parameters:
        beta (`float`, *optional*, defaults to `0.1`):
            Inverse temperature of NPO; as it tends to 0, NPO tends to gradient ascent.
        retain_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the cross-entropy on the retain rows.

    The rest is that of [`~trl.SFTConfig`].
    """

    beta: float = field(
        default=0.1, metadata={"help": "Inverse temperature of NPO; towards 0 it becomes gradient ascent."}
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"beta must be positive, got {self.beta}.")


class NPOTrainer(UnlearningTrainer):
    """
    Trainer for negative preference optimization (arXiv 2404.05868), restricted to a mask where one is given.

    The reference log-probabilities of the forget answers are computed once, before the first step, and kept with the
    checkpoints; there is no second model.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to unlearn from. A PEFT model (or `peft_config`) trains its adapters.
        args ([`NPOConfig`], *optional*):
            Configuration; an [`~trl.SFTConfig`] is taken too.
        train_dataset ([`~datasets.Dataset`]):
            Rows to forget, in any format of [`~trl.SFTTrainer`].
        retain_dataset ([`~datasets.Dataset`]):
            Rows to keep; no row may be in both.
        eval_dataset ([`~datasets.Dataset`] or `dict`, *optional*):
            For example `{"forget": ..., "retain": ...}`: cross-entropy and token accuracy of each.
        mask_config ([`MaskConfig`], *optional*):
            Compute a mask before training.
        mask ([`WeightMask`], `str` or `os.PathLike`, *optional*):
            A ready mask. With neither, all trainable weights train.

    The other arguments are those of [`~trl.SFTTrainer`].

    Example:
    ```python
    >>> trainer = NPOTrainer(model, train_dataset=forget, retain_dataset=retain, mask_config=MaskConfig())
    >>> trainer.train()
    ```
    """

    _name = "NPO"
    _tag_names = ["trl", "wagle-trl", "unlearning", "npo"]
    config_class = NPOConfig

    @property
    def forget_columns(self) -> list[str]:
        return [REFERENCE_COLUMN]

    def forget_loss(self, token_log_probs: Tensor, inputs: dict[str, Tensor], counts: Counts) -> Tensor:
        return npo_loss(token_log_probs.sum(1), inputs[REFERENCE_COLUMN], self.args.beta, counts.forget_rows)

    def prepare_training(self, checkpoint: str | None) -> None:
        super().prepare_training(checkpoint)
        if checkpoint is not None:
            values = self._load_reference(Path(checkpoint) / REFERENCE_FILE)
        elif REFERENCE_COLUMN in self.train_dataset.column_names:
            return
        else:
            values = self.reference_log_probs()
        if REFERENCE_COLUMN in self.train_dataset.column_names:
            self.train_dataset = self.train_dataset.remove_columns(REFERENCE_COLUMN)
        self.train_dataset = self.train_dataset.add_column(REFERENCE_COLUMN, values)

    @torch.no_grad()
    def reference_log_probs(self) -> list[float]:
        """Log-probability of every forget answer under the current weights, summed over its tokens."""
        was_training, values = self.model.training, []
        self.model.eval()
        batches = self._batches(self.train_dataset)
        for batch in tqdm(batches, desc="Computing reference log-probabilities", disable=self.args.disable_tqdm):
            with self.compute_loss_context_manager():
                outputs = self.model(**self._prepare_inputs(batch), use_cache=False, fused_lm_head=True)
            values += outputs.log_probs.float().sum(1).tolist()
        self.model.train(was_training)
        return values

    def write_files(self, folder: Path, *, in_checkpoint: bool, with_delta: bool) -> None:
        super().write_files(folder, in_checkpoint=in_checkpoint, with_delta=with_delta)
        if in_checkpoint and self.args.should_save:  # the weights that it came from are gone when a run is resumed
            values = torch.tensor(self.train_dataset[REFERENCE_COLUMN])
            spec = {REFERENCE_COLUMN: (values.dtype, tuple(values.shape))}
            write_tensors(folder / REFERENCE_FILE, spec, lambda name: values, {})

    def _load_reference(self, path: Path) -> list[float]:
        if not path.is_file():
            raise ValueError(f"No reference log-probabilities at {path}; resume from a checkpoint of this trainer.")
        file = TensorFile(path)
        rows = len(self.train_dataset)
        if REFERENCE_COLUMN not in file or file.shape(REFERENCE_COLUMN) != (rows,):
            raise ValueError(f"{path} does not hold the log-probabilities of {rows} rows; it is damaged or hostile.")
        return file[REFERENCE_COLUMN].tolist()
