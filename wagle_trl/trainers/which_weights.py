"""Which step the weights of a trainer are of, and the calls of `train` before: the best step may not be the last."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..comparison.history import History
from ..comparison.verdict import closing_verdict
from ..files.manifest import Manifest
from ..masks.fingerprint import adapter_fingerprint, model_fingerprint
from .trainer_base import TrainerBase

logger = logging.get_logger(__name__)

CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-([0-9]+)")


class WhichWeights(TrainerBase):
    """
    Goes before a [`~transformers.Trainer`] in the bases of a class.

    Attributes:
        loaded_step (`int`, *optional*):
            Step of the weights, if the best model was loaded at the end and is not the last.
        earlier_training (`list[dict]`):
            Number of steps and log of each call of `train` before the last.
        measured_fingerprint (`str`, *optional*): Fingerprint of the weights that were measured at the end.
    """

    loaded_step: int | None = None
    earlier_training: Sequence[dict[str, Any]] = ()
    measured_fingerprint: str | None = None

    def train(self, resume_from_checkpoint: str | None = None, *args, **kwargs):
        if resume_from_checkpoint is not None:
            manifest = Manifest.read(Path(resume_from_checkpoint))
            assert manifest is not None  # `MaskMixin.train` has checked it
            self.earlier_training = manifest.facts.get("earlier_training", [])
        elif self.state.global_step and self.model_init is None:
            self.earlier_training = [*self.earlier_training, self._last_training()]
        self.loaded_step = self.measured_fingerprint = None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    @property
    def history(self) -> History:
        """History of the training so far, over all calls of `train`."""
        return History(
            {
                "steps": self.state.global_step,
                "loaded_step": self.loaded_step,
                "earlier_training": list(self.earlier_training),  # pyright: ignore[reportArgumentType]
                "log_history": self.state.log_history,  # pyright: ignore[reportArgumentType]
            }
        )

    @property
    def verdict(self) -> str | None:
        """What came of unlearning in one line, see [`~comparison.verdict.closing_verdict`]; `None` without measurements."""
        return closing_verdict(self.history, vars(self.args))

    def saved_fingerprint(self) -> str | None:
        """Fingerprint of the weights that are saved, or of the adapters; `None` for a model that is sharded over processes."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return None
        return adapter_fingerprint(self.model) if isinstance(self.model, PeftModel) else model_fingerprint(self.model)

    def _last_training(self) -> dict[str, Any]:
        """Describe the last call of `train`, without the steps after the best model."""
        steps = self.state.global_step if self.loaded_step is None else self.loaded_step
        history = (entry for entry in self.state.log_history if "loaded_step" not in entry)
        return {"steps": steps, "log_history": [entry for entry in history if entry["step"] <= steps]}

    def _load_best_model(self) -> None:
        super()._load_best_model()
        found = CHECKPOINT.fullmatch(Path(self.state.best_model_checkpoint or "").name)
        if found is None or int(found[1]) == self.state.global_step:
            return
        self.loaded_step = int(found[1])
        logger.warning(
            f"The weights are now those of step {self.loaded_step} of {self.state.global_step}, the best by "
            f"{self.args.metric_for_best_model}: report and card speak of them."
        )
