"""The base of the unlearning trainers: forget rows and retain rows in one batch, one forward, one backward."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ..data.formats import split_last_message
from ..data.pairing import PairCollator, PairedRows, PairSampler, check_disjoint
from ..losses.objectives import cross_entropy
from ..trainers.checks import check_answers
from ..trainers.masked import MaskedTrainer
from ..trainers.masked_sft_config import MaskedSFTConfig
from .trajectory import Trajectory


@dataclass
class UnlearningConfig(MaskedSFTConfig):
    r"""
    Options of every unlearning trainer, on top of [`~trl.SFTConfig`].

    Parameters:
        retain_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the cross-entropy on the retain rows.
        trajectory_steps (`int`, *optional*, defaults to `10`):
            Every how many steps the answer probability of each set is measured and logged, see
            [`~unlearning.trajectory.Trajectory`]; `0` never.
        trajectory_rows (`int`, *optional*, defaults to `16`):
            On at most how many rows of each set.
    """

    retain_weight: float = field(
        default=1.0, metadata={"help": "Weight of the cross-entropy on the retain rows in the loss."}
    )
    trajectory_steps: int = field(
        default=10,
        metadata={"help": "Every how many steps the answer probability of each set is measured and logged; 0 never."},
    )
    trajectory_rows: int = field(
        default=16, metadata={"help": "On at most how many rows of each set the trajectory is measured."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.retain_weight < 0:
            raise ValueError(f"retain_weight must not be negative, got {self.retain_weight}.")
        if self.trajectory_steps < 0:
            raise ValueError(f"trajectory_steps must not be negative, got {self.trajectory_steps}.")
        if self.trajectory_rows < 1:
            raise ValueError(f"trajectory_rows must be at least 1, got {self.trajectory_rows}.")
        if self.packing or self.padding_free:
            raise ValueError("Unlearning needs one row a sample; set `packing=False` and `padding_free=False`.")
        if self.loss_type != "nll" or self.label_smoothing_factor:
            raise ValueError("Unlearning has a loss of its own; leave `loss_type` and `label_smoothing_factor` alone.")


class Counts(NamedTuple):
    """Numbers that losses are divided by, over one micro-batch or all of an optimizer step."""

    forget_rows: Tensor
    forget_tokens: Tensor
    retain_tokens: Tensor


class UnlearningTrainer(MaskedTrainer):
    """
    Forget `train_dataset`, keep `retain_dataset`.

    Every step pairs `per_device_train_batch_size` forget rows with as many retain rows; an epoch sees every forget row
    once. Subclasses define [`forget_loss`].
    """

    config_class = UnlearningConfig
    train_set = "forget"
    rows_a_sample = 2

    def __init__(self, model, args=None, *positional, train_dataset=None, retain_dataset=None, **kwargs):
        if train_dataset is None or retain_dataset is None:
            missing = "train_dataset" if train_dataset is None else "retain_dataset"
            raise ValueError(
                f"`{missing}` is required: pass the rows to forget as `train_dataset` and the rows to "
                "keep as `retain_dataset`."
            )
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("Unlearning has a loss of its own; subclass and override `forget_loss` for another.")
        super().__init__(
            model, args, *positional, train_dataset=train_dataset, retain_dataset=retain_dataset, **kwargs
        )
        # Both terms are divided by the counts of the whole optimizer step, so nothing is left to divide. Not said by
        # `loss_is_scaled_for_ga`: before transformers 5.19, TRL answers it with a `compute_loss_func` that is no function
        self.model_accepts_loss_kwargs = True
        check_disjoint(self.train_dataset, self.retain_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._pair_sampler = PairSampler(len(self.train_dataset), len(self.retain_dataset), seed)
        self.add_callback(_EpochSetter(self._pair_sampler))
        if self.args.trajectory_steps:
            self.add_callback(Trajectory(self))

    @abstractmethod
    def forget_loss(self, token_log_probs: Tensor, inputs: dict[str, Tensor], counts: Counts) -> Tensor:
        """
        The forget term of the objective.

        Args:
            token_log_probs (`torch.Tensor` of shape `(forget_rows, length)`): Zero outside the answers.
            inputs (`dict`): The extra forget columns of the batch.
            counts ([`Counts`]): What to divide by.
        """

    def _prepare_dataset(self, dataset, processing_class, args, *others):
        """Of a conversation the last message is the answer, as for every other format and in the evaluation."""
        if (
            "messages" in dataset.column_names
            and not args.assistant_only_loss
            and args.completion_only_loss is not False
        ):
            check_answers(dataset, others[-1])
            dataset = dataset.map(split_last_message, remove_columns="messages", desc="Splitting conversations")
        return super()._prepare_dataset(dataset, processing_class, args, *others)

    @property
    def forget_columns(self) -> list[str]:
        """Numeric columns of `train_dataset` that [`forget_loss`] reads."""
        return []

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *self.forget_columns]))

    def get_train_dataloader(self) -> DataLoader:
        forget = self._remove_unused_columns(self.train_dataset, description="forget")
        retain = self._remove_unused_columns(self.retain_dataset, description="retain")
        return self.accelerator.prepare(
            DataLoader(
                PairedRows(forget, retain),
                batch_size=self._train_batch_size,
                sampler=self._pair_sampler,
                collate_fn=PairCollator(self.data_collator, self.forget_columns),
                drop_last=self.args.dataloader_drop_last,
                num_workers=self.args.dataloader_num_workers,
                pin_memory=self.args.dataloader_pin_memory,
                persistent_workers=self.args.dataloader_persistent_workers,
                prefetch_factor=self.args.dataloader_prefetch_factor,
            )
        )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.stack([torch.stack(_count(batch["labels"][:, 1:] != -100)) for batch in batches]).sum(0)
        # Every process divides by the counts of all; DDP then averages the gradients, see `compute_loss`
        return batches, self.accelerator.gather(counts.to(device)).view(-1, len(Counts._fields)).sum(0)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        extras = {column: inputs.pop(column) for column in self.forget_columns}
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        rows = len(outputs.log_probs) // 2
        forget, retain = outputs.log_probs[:rows], outputs.log_probs[rows:]
        counts = Counts(*num_items_in_batch)
        forget_loss = self.forget_loss(forget, extras, counts)
        retain_loss = cross_entropy(retain, counts.retain_tokens)
        self._record(outputs, extras, inputs["attention_mask"])
        loss = forget_loss + self.args.retain_weight * retain_loss
        return loss * self.accelerator.num_processes

    @torch.no_grad()
    def _record(self, outputs, extras: dict[str, Tensor], attention_mask: Tensor) -> None:
        """Metrics of a micro-batch, averaged over all until the next log."""
        rows = len(outputs.log_probs) // 2
        local = Counts(*_count(outputs.label_mask))
        correct = outputs.is_top1
        values = {
            "forget_loss": self.forget_loss(outputs.log_probs[:rows], extras, local),
            "retain_loss": cross_entropy(outputs.log_probs[rows:], local.retain_tokens),
            "forget_token_accuracy": correct[:rows].sum() / local.forget_tokens,
            "retain_token_accuracy": correct[rows:].sum() / local.retain_tokens,
        }
        means = self.accelerator.gather(torch.stack(list(values.values())).float()).view(-1, len(values)).mean(0)
        for key, value in zip(values, means.tolist(), strict=True):
            self._metrics["train"][key].append(value)
        self._total_train_tokens += self.accelerator.gather(attention_mask.sum()).sum().item()
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]


class _EpochSetter(TrainerCallback):
    def __init__(self, sampler: PairSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.epoch = int(state.epoch or 0)


def _count(answer: Tensor) -> Counts:
    """Counts of a batch from its answer mask of shape `(rows, length)`, the forget rows first."""
    rows = len(answer) // 2
    return Counts(torch.tensor(rows, device=answer.device), answer[:rows].sum(), answer[rows:].sum())
