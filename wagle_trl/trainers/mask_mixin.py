"""`MaskMixin`: a mask on any `transformers.Trainer`."""

import inspect
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ..attribution.compute_mask import compute_mask
from ..attribution.config import MaskConfig
from ..attribution.report import mask_report
from ..attribution.scores import get_score
from ..data.lengths import AnswerTokens
from ..data.tokenization import RowOptions, tokenize_dataset
from ..deltas.delta import SparseDelta, weights_fingerprint
from ..distributed import broadcast_, world_size
from ..losses.per_sample import Batch, SampleLosses, sample_losses
from ..masks.info import UNKNOWN_REVISION
from ..masks.mask import WeightMask
from ..memory.checkpointing import transformer_layers
from ..optim.masked_adamw import MaskedAdamW
from ..planning.planner import Reference
from .checks import (
    check_accelerator,
    check_arguments,
    check_before_work,
    check_is_base,
    check_mask_config,
    check_rows,
    check_save_delta,
)
from .hub_pushes import HubPushes
from .log_lines import use_log_lines
from .mask_callback import MaskedTraining, masked_optimizer, only_masked_weights_trainable
from .mask_options import MaskOptions
from .memory_watch import MemoryWatch
from .model_card import update_card, write_card
from .resuming import check_base_of, check_same_run, newest_whole_checkpoint, run_facts, whole_manifest
from .run_inputs import RunInputs
from .run_report import write_run_report
from .signatures import joint_signature
from .tracking import MaskTracking, mask_settings
from .trainer_base import MaskedTrainerBase
from .update_share import MovedShare
from .which_weights import WhichWeights
from .whole_saves import WholeSaves, holds_save


class MaskMixin(HubPushes, WholeSaves, WhichWeights, MaskedTrainerBase):
    """
    Goes first in the bases of a [`~transformers.Trainer`], as in `class MaskedDPOTrainer(MaskMixin, DPOTrainer)`: it then
    trains the weights that a mask selects and leaves every other weight bit-identical.

    The arguments are those of the other base and these keywords:

    Args:
        mask_config ([`MaskConfig`], *optional*):
            How to compute a mask when training starts. It is saved as `wagle_mask.safetensors` in `args.output_dir`.
        mask ([`WeightMask`], `str` or `os.PathLike`, *optional*):
            A mask that exists, or its path. With neither `mask` nor `mask_config`, all trainable weights train.
        forget_dataset ([`~datasets.Dataset`], *optional*):
            Rows whose weights the mask of `mask_config` selects, in any format of [`~data.tokenization.tokenize_row`]; by
            default the training rows, where they have `input_ids`.
        retain_dataset ([`~datasets.Dataset`], *optional*):
            Rows whose weights the mask spares, for scores that compare two sets.

    `args` may have the options of [`~trainers.mask_options.MaskOptions`].
    """

    _name = "Masked training"
    _tag_names = ["wagle-trl"]
    memory: MemoryWatch
    train_set = "train"  # the name of `train_dataset` in reports
    sample_losses: SampleLosses = staticmethod(sample_losses)  # the losses that attribution differentiates
    attributed_columns = ("input_ids", "labels")  # the columns that these losses read
    planning_losses: SampleLosses | None = None  # replaces these losses in plans of a GPU's memory
    training_losses: SampleLosses | None = None  # of a step of training, in plans; by default those of attribution
    planned_reference: Reference | None = None  # what plans count of the model before unlearning
    head_temperature: float | None = None  # temperature of TRL's fused LM head, in trainers that have one

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.__signature__ = joint_signature(cls, MaskMixin)

    def __init__(
        self,
        *args,
        mask_config: MaskConfig | None = None,
        mask: WeightMask | str | os.PathLike | None = None,
        forget_dataset: Dataset | None = None,
        retain_dataset: Dataset | None = None,
        **kwargs,
    ):
        if mask is not None and mask_config is not None:
            raise ValueError("Pass either `mask` (one that exists) or `mask_config` (to compute one), not both.")
        given = inspect.signature(super().__init__).bind_partial(*args, **kwargs).arguments
        masked = mask is not None or mask_config is not None
        check_rows(forget_dataset, "forget_dataset")
        check_rows(retain_dataset, "retain_dataset")
        if given.get("args") is not None:
            check_arguments(given["args"], masked, given, unlearns=self.train_set == "forget")
        self.mask = WeightMask.load(mask) if isinstance(mask, str | os.PathLike) else mask
        self.answer_tokens: dict[str, AnswerTokens] = {}
        super().__init__(*args, **kwargs)
        use_log_lines(self, given.get("callbacks"))
        self.mask_options = self.args if isinstance(self.args, MaskOptions) else MaskOptions()
        if masked:
            check_accelerator(self.accelerator)
        if self.mask_options.save_delta:
            check_save_delta(masked, self.model)
        self.mask_config = mask_config
        self.forget_dataset = None if forget_dataset is None else self._prepare_additional(forget_dataset, "forget")
        self.retain_dataset = None if retain_dataset is None else self._prepare_additional(retain_dataset, "retain")
        if mask_config is not None:
            columns = set(self.attributed_dataset.column_names or ())
            check_mask_config(mask_config, self.model, columns >= set(self.attributed_columns), retain_dataset)
        revision = (vars(self.args).get("model_init_kwargs") or {}).get("revision")
        rows = {self.train_set: given.get("train_dataset"), "retain": retain_dataset}
        rows |= {} if forget_dataset is None else {"forget": forget_dataset}
        rows = {name: dataset for name, dataset in rows.items() if isinstance(dataset, Dataset)}
        self.run_inputs = RunInputs(given.get("model", self.model), revision, rows)
        check_before_work(self, masked)
        self.memory = MemoryWatch(self)
        self.add_callback(MaskedTraining(self))
        self.add_callback(MaskTracking(self))

    @property
    def tokenization(self) -> dict[str, Any] | None:
        """Options that decide which tokens of a row are scored, for evaluation; `None` if those of the base trainer do."""
        return None

    @property
    def streams(self) -> dict[str, Dataset]:
        """Prepared rows of every kind that goes into a batch."""
        return {self.train_set: self.train_dataset}

    # Rows to attribute

    def _prepare_additional(self, dataset: Dataset, name: str) -> Dataset:
        """Tokenize rows that are no argument of the base trainer."""
        rows = tokenize_dataset(dataset, self.processing_class, RowOptions(), name)
        return rows.select_columns(["input_ids", "labels"])  # pyright: ignore[reportReturnType]

    @property
    def attributed_dataset(self) -> Dataset:
        """Tokenized rows whose weights the mask selects."""
        return self.train_dataset if self.forget_dataset is None else self.forget_dataset

    def _batches(self, dataset: Dataset) -> DataLoader:
        """Load prepared rows in their order, in batches of training's size."""
        rows = dataset.select_columns(list(self.attributed_columns))
        return DataLoader(rows, batch_size=self.args.per_device_train_batch_size, collate_fn=self._collate)  # pyright: ignore[reportArgumentType]

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        return DataCollatorForLanguageModeling(self.processing_class.pad_token_id)(rows)  # pyright: ignore[reportArgumentType]

    # Mask

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        Compute the mask, or load it from the checkpoint, and train as [`~transformers.Trainer.train`] does.

        `resume_from_checkpoint=True` resumes from the last whole checkpoint. A checkpoint that changed since it was saved,
        or is of other rows, another mask or another objective, raises a `ValueError`.
        """
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = newest_whole_checkpoint(self.args.output_dir)
        if checkpoint is not None:
            check_same_run(self, Path(checkpoint), whole_manifest(Path(checkpoint)))
            checkpoint = str(checkpoint)
        self.memory.predict()
        self.prepare_training(checkpoint)
        if self.mask_options.compile_layers:
            for layer in transformer_layers(self.model):
                layer.compile()
        with only_masked_weights_trainable(self.model, self.mask), self.memory.measure("training"):
            try:
                return super().train(checkpoint, *args, **kwargs)
            finally:
                if self._masked_optimizer is not None:
                    self._masked_optimizer.remove_hooks()

    def prepare_training(self, checkpoint: str | None) -> None:
        """
        Compute what depends on the original weights, before the checkpoint (if any) is loaded.

        Args:
            checkpoint (`str`, *optional*): Checkpoint that training will resume from.
        """
        if self.mask is None and self.mask_config is None:
            return
        if checkpoint is not None:
            self.mask = WeightMask.load(checkpoint)
            self.mask.check(self.model, fingerprint=False)
        elif self.mask is None:
            self.mask = self.compute_mask()
        self.mask = self.mask.to("cpu")  # the optimizer copies what it needs to the device
        self.mask_options.mask_settings = mask_settings(self.mask)
        if self._moved is None:  # in the first call of `train` the weights are still the original ones
            self._moved = MovedShare(self.model, self.mask)
        if self.mask_options.save_delta:
            self.remember_base(checkpoint)

    def remember_base(self, checkpoint: str | None) -> None:
        """
        Note which weights training starts from, in the first call, for what needs them again when a run resumes.

        Args:
            checkpoint (`str`, *optional*): Checkpoint that training will resume from. A `ValueError` if it is of another base.
        """
        if self._base_fingerprint is not None:
            return
        if self.mask is not None:
            check_is_base(self.model, self.mask)
        self._base_fingerprint = weights_fingerprint(self.model)
        if checkpoint is not None:
            check_base_of(Path(checkpoint), self._base_fingerprint)

    @property
    def mask_report(self) -> dict | None:
        """Content of [`~attribution.report.mask_report`]; `None` without a mask."""
        return None if self.mask is None else mask_report(self.mask)

    @property
    def _origin(self) -> dict[str, str]:
        """Name and revision of the base model as a mask records them; empty where the model has no name."""
        name = self.model.config._name_or_path
        return {"base_model": name, "base_revision": self.run_inputs.base_revision or UNKNOWN_REVISION} if name else {}

    def compute_mask(self) -> WeightMask:
        """Compute the mask of `mask_config` at the current weights and save it. Interrupted sweeps go on from the last."""
        assert self.mask_config is not None
        score = get_score(self.mask_config.mask_score)
        retain = self.retain_dataset if score.uses_retain else None
        with self.memory.measure("attribution"):
            self.mask, _ = compute_mask(
                self.model,
                self._batches(self.attributed_dataset) if score.statistic else None,
                None if retain is None else self._batches(retain),
                self.mask_config,
                losses=self.sample_losses,
                planning_losses=self.planning_losses if self.args.device.type == "cuda" else None,
                gradient_checkpointing=self.args.gradient_checkpointing,
                folder=self.args.output_dir,
                progress=not self.args.disable_tqdm,
            )
        self.mask.info = replace(self.mask.info, **self._origin)
        if world_size() > 1:  # gradients may differ in the last bit between processes
            self.mask = self.mask.to(self.args.device)
            for bits in self.mask.bits.values():
                broadcast_(bits)
        if self.args.should_save and not holds_save(Path(self.args.output_dir)):
            self.mask.save(self.args.output_dir)
        return self.mask

    # Optimizer

    _masked_optimizer: MaskedAdamW | None = None

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        if self.mask is None or self.optimizer is not None:
            return super().create_optimizer(*args, **kwargs)
        decayed = set(self.get_decay_parameter_names(self.model))
        self.optimizer = self._masked_optimizer = masked_optimizer(
            self.model, self.mask, decayed, self.args, self.mask_options.accumulator_dtype
        )
        return self.optimizer

    def _clip_grad_norm(self, model):
        # Under DDP the gradients still hold all weights here. The optimizer clips by those of the selected weights
        return torch.tensor(0.0) if self._masked_optimizer is not None else super()._clip_grad_norm(model)

    # Logs and files

    _moved: MovedShare | None = None
    _base_fingerprint: str | None = None
    _plotted_mask: WeightMask | None = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._masked_optimizer is not None and "grad_norm" in logs:
            norm = self._masked_optimizer.last_grad_norm
            assert norm is not None and self._moved is not None  # every step clips
            logs["grad_norm"] = norm
            logs["selected_moved"] = self._moved.share()
        super().log(logs, start_time)

    def write_files(self, folder: Path, *, in_checkpoint: bool, with_delta: bool) -> None:
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            if self.mask is not None:
                self.mask.save(folder)
            write_run_report(self, folder)
        super(WholeSaves, self).save_model(str(folder), _internal_call=True)
        if with_delta and self.mask_options.save_delta and self.args.should_save:
            assert self.mask is not None and self._base_fingerprint is not None  # `check_save_delta` asks for a mask
            info = self.mask.info
            missing = {name: text for name, text in self._origin.items() if getattr(info, name) is None}
            mask = WeightMask(self.mask.bits, self.mask.shapes, replace(info, **missing))
            SparseDelta.from_model(self.model, mask, self._base_fingerprint).save(folder)

    def write_card(self, stage: Path, folder: Path) -> str:
        return write_card(self, stage, folder)

    def facts(self) -> dict[str, Any]:
        return run_facts(self)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write the card of [`~hub.card.model_card`], the report and the picture of the mask into `args.output_dir`."""
        if self.is_world_process_zero():
            update_card(self, model_name, dataset_name, tags)
