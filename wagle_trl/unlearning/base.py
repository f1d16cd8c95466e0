"""The base of the unlearning trainers: rows of every kind in one batch, with one forward and one backward pass."""

import copy
import os
from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import (
    BitsAndBytesConfig,
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig  # pyright: ignore[reportPrivateImportUsage]

from ..attribution.config import MaskConfig
from ..comparison.goal import Goal
from ..data.pairing import PairSampler, check_disjoint
from ..losses.fused_head import TokenPredictions, answer_log_probs
from ..losses.lm_head import SplitModel
from ..losses.per_sample import SampleLosses
from ..masks.mask import WeightMask
from ..planning.planner import Reference
from .alternates import other_answers
from .batch import UnlearningBatch
from .config import UnlearningConfig
from .defaults import EPOCHS, default_learning_rate, default_num_train_epochs
from .dropout import disable_dropout
from .kept import KeptMetric, asks_for_kept
from .planned_step import planned_losses, planned_reference, states_of
from .reference import REFERENCE_COLUMN, LogProbReference
from .retain_losses import RETAIN_LOSSES
from .rows import EpochSetter, UnlearningRows
from .state_reference import STATES, StateReference, num_answer_tokens
from .stopping import StopWhenDone, check_measured
from .trajectory import Trajectory


class UnlearningTrainer(KeptMetric, UnlearningRows):
    """
    Base of the trainers that forget `train_dataset` and keep `retain_dataset`.

    An objective is a subclass with its own config, its declarations and [`forget_loss`]. Every step pairs
    `per_device_train_batch_size` forget rows with as many rows of each other kind; an epoch sees every forget row once.

    Declarations:
        rows (`tuple[str, ...]`, defaults to `("forget",)`):
            Kinds of rows that `forget_loss` needs: `"forget"`, `"alternate"` (the forget rows with another answer). Those of
            the retain term follow, see [`rows_of`].
        reference (`"log_probs"`, `"hidden_states"` or `None`):
            What `forget_loss` compares the answers of `rows` with, under the model before unlearning: their
            log-probabilities, see [`~unlearning.reference.LogProbReference`]; or the last hidden states, of which whole
            distributions follow, see [`~unlearning.state_reference.StateReference`]. There is no second model.
        distributions (`bool`, defaults to `False`):
            Whether `forget_loss` needs hidden states and the LM head without a reference.
        rate_factor (`float`, defaults to `1.0`):
            Default learning rate, as a multiple of [`~unlearning.defaults.default_learning_rate`].

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to unlearn from. A PEFT model (or `peft_config`) trains its adapters.
        args ([`UnlearningConfig`], *optional*):
            Configuration, of the class `config_class`; an [`~trl.SFTConfig`] is converted to it.
        train_dataset ([`~datasets.Dataset`]):
            Rows to forget, in any format of [`~trl.SFTTrainer`].
        eval_dataset ([`~datasets.Dataset`] or `dict`, *optional*):
            For example `{"forget": ..., "retain": ...}`: cross-entropy and token accuracy of each.
        retain_dataset ([`~datasets.Dataset`]):
            Rows to keep. No row may be in both sets.
        mask_config ([`MaskConfig`], *optional*):
            Compute a mask before training.
        mask ([`WeightMask`], `str` or `os.PathLike`, *optional*):
            A mask that exists, or the path of one. With neither `mask` nor `mask_config`, all trainable weights train.

    The other arguments are those of [`~trl.SFTTrainer`].
    """

    reference: ClassVar[Literal["log_probs", "hidden_states"] | None] = None
    distributions: ClassVar[bool] = False
    rate_factor: ClassVar[float] = 1.0

    config_class = UnlearningConfig

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: SFTConfig | TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        formatting_func: Callable[[dict], str] | None = None,
        *,
        retain_dataset: Dataset | None = None,
        mask_config: MaskConfig | None = None,
        mask: WeightMask | str | os.PathLike | None = None,
    ):
        if train_dataset is None or retain_dataset is None:
            missing = "train_dataset" if train_dataset is None else "retain_dataset"
            raise ValueError(
                f"`{missing}` is required: pass the rows to forget as `train_dataset` and the rows to "
                "keep as `retain_dataset`."
            )
        if compute_loss_func is not None:
            raise ValueError("Unlearning has its own loss; subclass and override `forget_loss` for another.")
        args = copy.copy(self._to_config(args, model))  # another trainer of the same `args` may need another rate
        chooses_epochs = args.num_train_epochs is None
        if chooses_epochs:
            args.num_train_epochs = EPOCHS  # until the rows are known: `long_rows` may make more of them
        check_measured(args)
        if eval_dataset is None and asks_for_kept(args):
            eval_dataset = {}  # transformers asks for evaluation rows; this metric is of the training rows
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            quantization_config=quantization_config,
            peft_config=peft_config,
            formatting_func=formatting_func,
            retain_dataset=retain_dataset,
            mask_config=mask_config,
            mask=mask,
        )
        if chooses_epochs:
            self.args.num_train_epochs = default_num_train_epochs(len(self.train_dataset), self.args)
        if self.args.learning_rate is None:
            density = mask_config.mask_density if mask_config else self.mask.density if self.mask else None
            self.args.learning_rate = self.rate_factor * default_learning_rate(self.model, density)
        if self.args.disable_dropout:
            disable_dropout(self.model)
        # Both terms are divided by the counts of the whole optimizer step, so the trainer must not divide again. Not by
        # `loss_is_scaled_for_ga`: before transformers 5.19, TRL then sets a `compute_loss_func` that is no function
        self.model_accepts_loss_kwargs = True
        check_disjoint(self.train_dataset, self.retain_dataset)
        for kind, rows in other_answers(self, train_dataset, retain_dataset).items():
            self.set_stream(kind, rows)
        self._add_references()
        self._pair_sampler = PairSampler(len(self.train_dataset), len(self.retain_dataset), self.data_seed)
        self.add_callback(EpochSetter(self._pair_sampler))
        self.goal = Goal.of(vars(self.args))
        if self.args.trajectory_steps:
            self._trajectory = Trajectory(self, self.args.trajectory_steps, self.args.trajectory_rows)
            self.add_callback(self._trajectory)
        if self.args.stop_forget_probability:
            self.add_callback(StopWhenDone(self, self.goal))

    @abstractmethod
    def forget_loss(self, batch: UnlearningBatch) -> Tensor:
        """
        Compute the forget term of the objective, a scalar.

        Args:
            batch ([`~unlearning.batch.UnlearningBatch`]): Log-probabilities of the rows, and the counts to divide by.
        """

    # Loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        references = {name: inputs.pop(name) for name in (REFERENCE_COLUMN, STATES) if name in inputs}
        with self.split.last_hidden_states() if self.split else nullcontext() as kept:
            outputs = answer_log_probs(model, inputs)
        batch = UnlearningBatch.of(self.rows_of(self.args), outputs, inputs["labels"], num_items_in_batch)
        if self.log_prob_reference is not None:
            batch.add_reference(self.rows, references[REFERENCE_COLUMN])
        if self.split is not None and kept is not None:
            batch.add_states(kept[-1], self.split.head)
        if self.state_reference is not None:
            batch.add_reference_states(self.state_reference.kinds, references[STATES], self.state_reference.head)
        forget_loss = self.forget_loss(batch)
        values, loss = {"forget_loss": forget_loss}, self.args.forget_weight * forget_loss
        if "retain" in batch.streams:
            values["retain_loss"] = self.retain_loss(batch)
            loss = loss + self.retain_weight * values["retain_loss"]
        if outputs.aux_loss is not None:  # of a mixture of experts, over all streams
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / self.current_gradient_accumulation_steps
        self._record(values, batch, outputs, inputs["attention_mask"])
        return loss * self.accelerator.num_processes

    @property
    def retain_weight(self) -> float:
        """Weight of the retain term in this step."""
        return self.args.retain_weight

    def retain_loss(self, batch: UnlearningBatch) -> Tensor:
        """Compute the term of `args.retain_loss`, a scalar, before its weight."""
        return RETAIN_LOSSES[self.args.retain_loss].loss(batch, self.args)

    @torch.no_grad()
    def _record(
        self, values: dict[str, Tensor], batch: UnlearningBatch, outputs: TokenPredictions, attention_mask: Tensor
    ) -> None:
        """Store the metrics of a micro-batch, which the next log averages; those of a step have its value as their mean."""
        for (name, stream), correct in zip(batch.streams.items(), outputs.is_top1.chunk(len(batch.streams))):
            values[f"{name}_token_accuracy"] = correct.sum() / stream.num_tokens
        sums = self._gather(torch.stack(list(values.values())).float()).view(-1, len(values)).sum(0)
        for key, value in zip(values, (sums * self.current_gradient_accumulation_steps).tolist(), strict=True):
            self._metrics["train"][key].append(value)
        self._total_train_tokens += self._gather(attention_mask.sum()).sum().item()
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]

    # Reference

    def _add_references(self) -> None:
        """Set up what the terms of the loss compare with."""
        with_states = states_of(type(self), self.args)
        self.log_prob_reference = LogProbReference(self, self.rows) if self.reference == "log_probs" else None
        reads_states = bool(with_states) or self.distributions
        if reads_states and isinstance(self.model, PeftModel) and self.model.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"{self._name} with retain_loss='{self.args.retain_loss}' compares distributions token by token, and the virtual "
                f"tokens of {type(self.model.active_peft_config).__name__} shift them; use LoRA, a mask, or an objective and a "
                "retain loss of log-probabilities, such as NPO with 'nll'."
            )
        self.split = SplitModel.of(self.model) if reads_states else None
        self.state_reference = None
        if self.split is not None and with_states:
            self.state_reference = StateReference(self, self.split, list(with_states))

    # Plan

    @property
    def training_losses(self) -> SampleLosses:  # pyright: ignore[reportIncompatibleVariableOverride]
        on_gpu = self.args.device.type != "cpu" and self.planning_losses is not None
        return planned_losses(type(self), self.args, on_gpu, self.split, self._answer_length)

    @property
    def planned_reference(self) -> Reference | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        swaps = self.state_reference is not None and "swap" in self.state_reference.ways.values()
        return planned_reference(type(self), self.args, swaps, self._answer_length)

    @cached_property
    def _answer_length(self) -> int | None:
        """Tokens of the longest answer, where a loss looks at whole distributions."""
        if self.split is None:
            return None
        return max(count for rows in self.streams.values() for count in num_answer_tokens(rows))

    def prepare_training(self, checkpoint: str | None) -> None:
        super().prepare_training(checkpoint)
        for reference in (self.log_prob_reference, self.state_reference):
            if reference is not None:
                reference.prepare(checkpoint)

    def write_files(self, folder: Path, *, in_checkpoint: bool, with_delta: bool) -> None:
        super().write_files(folder, in_checkpoint=in_checkpoint, with_delta=with_delta)
        if in_checkpoint and self.args.should_save and self.log_prob_reference is not None:
            self.log_prob_reference.save(folder)
