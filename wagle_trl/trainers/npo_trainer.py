import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import TrainerCallback

from ..files import atomic_path
from ..objectives import npo_loss
from .npo_config import NPOConfig
from .unlearning import Counts, UnlearningTrainer

REFERENCE_COLUMN = "reference_log_probs"
REFERENCE_FILE = "wagle_reference.safetensors"


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

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(_ReferenceSaver(self))

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

    def _load_reference(self, path: Path) -> list[float]:
        if not path.is_file():
            raise ValueError(f"No reference log-probabilities at {path}; resume from a checkpoint of this trainer.")
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("rows") != self._rows_digest():
                raise ValueError(
                    "The forget rows, or their order, are not those of the checkpoint; resume with the same data."
                )
            return file.get_tensor(REFERENCE_COLUMN).tolist()

    def _rows_digest(self) -> str:
        """Short hash of the tokenized forget rows, which the reference belongs to."""
        return hashlib.sha256(json.dumps(list(self.train_dataset["input_ids"])).encode()).hexdigest()[:16]


class _ReferenceSaver(TrainerCallback):
    """Puts the reference log-probabilities into every checkpoint, as the weights they came from are gone by then."""

    def __init__(self, trainer: NPOTrainer):
        self.trainer = trainer

    def on_save(self, args, state, control, **kwargs):
        if args.should_save:
            values = torch.tensor(self.trainer.train_dataset[REFERENCE_COLUMN])
            with atomic_path(Path(args.output_dir) / f"checkpoint-{state.global_step}" / REFERENCE_FILE) as path:
                save_file({REFERENCE_COLUMN: values}, path, {"rows": self.trainer._rows_digest()})
