"""The trajectory of unlearning: answer probabilities of a few rows of every set, every few steps."""

import math

import torch
from datasets import Dataset
from transformers import TrainerCallback
from transformers.utils import logging

from ..comparison.trajectory import SUFFIX
from ..distributed import broadcast_
from ..losses.fused_head import in_eval_mode
from ..losses.per_sample import Batch, fused_sample_losses
from ..trainers.masked_sft import MaskedSFTTrainer

logger = logging.get_logger(__name__)


class DivergedError(ValueError):
    """A measurement that is not finite."""


class Trajectory(TrainerCallback):
    """
    Logs `{set}_probability`, the mean of \\( \\exp(-\\text{token-mean loss of a row's answer}) \\), during training and of
    the weights that will be saved, with their `loaded_step` if these are the best and not the last. At the end it says
    what came of the run, see [`~comparison.verdict.verdict`].

    The sets are the forget rows and the retain rows trained on, and those of a `dict` of evaluation sets that have
    another name and a length. The rows go forward in batches of training's size, without logits: about a third of the
    cost of training on as many.

    Args:
        trainer ([`~trainers.masked_sft.MaskedSFTTrainer`]): Trainer to watch.
        steps (`int`): Steps between two measurements. Step 0 and the last step are measured, too.
        rows (`int`): Rows of each set that are measured, at most; they are evenly spaced.
    """

    def __init__(self, trainer: MaskedSFTTrainer, steps: int, rows: int):
        self.trainer, self.steps = trainer, steps
        sets = {"forget": trainer.train_dataset, "retain": trainer.retain_dataset}
        if isinstance(trainer.eval_dataset, dict):
            others = {name: data for name, data in trainer.eval_dataset.items() if isinstance(data, Dataset)}
            sets = sets | others | sets  # in this order; the rows trained on win over others of their name
        self.batches = {name: self._collate(evenly_spaced(data, rows)) for name, data in sets.items()}

    def _collate(self, rows: Dataset) -> list[Batch]:
        # Without a `DataLoader`, which would draw random numbers before dropout does: watching must not change a run
        size = self.trainer.args.per_device_train_batch_size
        plain = rows.select_columns(["input_ids", "labels"]).to_list()
        return [self.trainer.data_collator(plain[start : start + size]) for start in range(0, len(plain), size)]

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:  # a resumed run has this measurement in its history
            self._log(control)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0 or state.global_step == state.max_steps:
            self._log(control)

    def on_train_end(self, args, state, control, **kwargs):
        # Always, as the weights may be others than those of the last step: the best ones, or those of another callback
        loaded = self.trainer.loaded_step
        self._log(control, **({} if loaded is None else {"loaded_step": loaded}))
        if args.should_save:
            self.trainer.measured_fingerprint = self.trainer.saved_fingerprint()
        if state.is_world_process_zero and self.trainer.verdict:
            logger.warning(f"{self.trainer.verdict}.")

    def measure(self) -> dict[str, float]:
        """Measure the answer probability of each set under the weights as they are, by its name in the log."""
        with in_eval_mode(self.trainer.model):
            values = torch.stack([self._probability(batches) for batches in self.batches.values()])
        # The processes must agree on when to stop and what is best, to the last bit
        measured = dict(zip(self.batches, broadcast_(values).tolist(), strict=True))
        if diverged := [name for name, value in measured.items() if not math.isfinite(value)]:
            raise DivergedError(
                f"The model has diverged: {diverged[0]}{SUFFIX} is NaN after step {self.trainer.state.global_step}. Lower "
                "learning_rate, or raise warmup_steps; nothing was saved at this step."
            )
        return {f"{name}{SUFFIX}": value for name, value in measured.items()}

    def _log(self, control, **of: float) -> None:
        should_log, state, logs = control.should_log, self.trainer.state, self.measure() | of
        if not any((logs | {"step": state.global_step}).items() <= entry.items() for entry in state.log_history):
            self.log(logs)
        control.should_log = should_log  # any log clears it, and the training metrics would wait for the next

    def log(self, logs: dict[str, float]) -> None:
        """Log beside the training metrics, whose averages `SFTTrainer.log` would flush, too."""
        with in_eval_mode(self.trainer.model):
            self.trainer.log(logs)

    @torch.no_grad()
    def _probability(self, batches: list[Batch]) -> torch.Tensor:
        model, device = self.trainer.model, self.trainer.args.device
        moved = ({key: value.to(device) for key, value in batch.items()} for batch in batches)
        with self.trainer.compute_loss_context_manager():
            losses = torch.cat([fused_sample_losses(model, batch)[0] for batch in moved])
        return losses.float().neg().exp().mean()


def evenly_spaced(rows: Dataset, count: int) -> Dataset:
    """At most `count` rows, evenly spaced."""
    if len(rows) <= count:
        return rows
    return rows.select([i * len(rows) // count for i in range(count)])
