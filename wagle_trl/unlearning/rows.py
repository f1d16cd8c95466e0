"""The rows of unlearning: of several kinds, as many of each in a batch."""

from typing import ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ..data.pairing import PairCollator, PairedRows, PairSampler
from ..trainers.masked_sft import MaskedSFTTrainer
from .batch import UnlearningBatch
from .config import UnlearningConfig
from .defaults import steps_per_epoch
from .reference import REFERENCE_COLUMN, LogProbReference
from .retain_losses import RETAIN_LOSSES
from .state_reference import StateReference

# Kind of rows -> attribute of the trainer that holds them
_STREAMS = {
    "forget": "train_dataset",
    "alternate": "alternate_dataset",
    "retain": "retain_dataset",
    "retain_refusal": "retain_refusal_dataset",
}


class UnlearningRows(MaskedSFTTrainer):
    """A trainer whose batches hold rows of several kinds: forget rows, and as many of each other kind that its loss needs."""

    rows: ClassVar[tuple[str, ...]] = ("forget",)

    args: UnlearningConfig
    retain_dataset: Dataset
    alternate_dataset: Dataset | None = None
    retain_refusal_dataset: Dataset | None = None
    log_prob_reference: LogProbReference | None
    state_reference: StateReference | None
    train_set = "forget"
    _pair_sampler: PairSampler

    @classmethod
    def rows_of(cls, args: UnlearningConfig) -> tuple[str, ...]:
        """List the kinds of rows in a batch, in their order. Without a retain weight there are no retain rows."""
        return (*cls.rows, *(RETAIN_LOSSES[args.retain_loss].rows if args.retain_weight else ()))

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        """Score answers, of every format and in every set, as evaluation and attribution do."""
        rows = self._answers(dataset, processing_class, args, formatting_func, dataset_name)
        return super(MaskedSFTTrainer, self)._prepare_dataset(rows, processing_class, args, False, None, dataset_name)

    @property
    def streams(self) -> dict[str, Dataset]:
        """Prepared rows of every kind that goes into a batch, in their order."""
        return {kind: getattr(self, _STREAMS[kind]) for kind in self.rows_of(self.args)}

    def set_stream(self, kind: str, rows: Dataset) -> None:
        """Replace the prepared rows of a kind."""
        setattr(self, _STREAMS[kind], rows)

    @property
    def num_epochs(self) -> float:
        """How often training sees the forget rows."""
        if self.args.max_steps > 0:
            return self.args.max_steps / steps_per_epoch(len(self.train_dataset), self.args)
        assert self.args.num_train_epochs is not None  # chosen by the constructor
        return self.args.num_train_epochs

    @property
    def data_seed(self) -> int:
        """Seed of the pairs and of the choice among alternates."""
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    @property
    def rows_per_sample(self) -> int:
        return len(self.rows_of(self.args))

    @property
    def _columns(self) -> list[str]:
        """Columns that only rows with a reference have."""
        columns = [] if self.log_prob_reference is None else [REFERENCE_COLUMN]
        return columns + ([] if self.state_reference is None else self.state_reference.columns)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *self._columns]))

    def get_train_dataloader(self) -> DataLoader:
        streams = {kind: self._remove_unused_columns(rows, description=kind) for kind, rows in self.streams.items()}
        return self.accelerator.prepare(
            DataLoader(
                PairedRows(streams, len(self.train_dataset)),
                batch_size=self._train_batch_size,
                sampler=self._pair_sampler,
                collate_fn=PairCollator(self.data_collator, self._columns),
                drop_last=self.args.dataloader_drop_last,
                num_workers=self.args.dataloader_num_workers,
                pin_memory=self.args.dataloader_pin_memory,
                persistent_workers=self.args.dataloader_persistent_workers,
                prefetch_factor=self.args.dataloader_prefetch_factor,
            )
        )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if self.control.should_training_stop:  # before the first step: `StopWhenDone` has found nothing to do
            return [], None
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.state_reference is not None:
            self.state_reference.add(batches)
        answers = [batch["labels"][:, 1:] != -100 for batch in batches]
        counts = torch.stack([UnlearningBatch.count(answer, self.rows_per_sample) for answer in answers]).sum(0)
        # Every process divides by the counts of all; DDP then averages the gradients, see `compute_loss`
        return batches, self._gather(counts.to(device)).view(-1, len(counts)).sum(0)

    def _gather(self, values: Tensor) -> Tensor:
        """Values of all processes, one after the other."""
        return self.accelerator.gather(values)  # pyright: ignore[reportReturnType]


class EpochSetter(TrainerCallback):
    """Tells the sampler the epoch, of which its order is a function."""

    def __init__(self, sampler: PairSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.epoch = int(state.epoch or 0)
