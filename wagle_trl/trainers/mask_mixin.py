"""`MaskMixin`: a mask on any `transformers.Trainer`."""

import inspect
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ..attribution.compute_mask import compute_mask
from ..attribution.config import MaskConfig
from ..attribution.report import mask_report, plot_mask
from ..attribution.scores import get_score
from ..data.formats import tokenize_row
from ..deltas.delta import SparseDelta, weights_fingerprint
from ..distributed import broadcast_, world_size
from ..files.atomic import check_writable, staging_folder
from ..files.run_folder import CARD_FILE, EVALUATION_FILE, MASK_FILE, PLOT_FILE, REPORT_FILE
from ..losses.per_sample import Batch, SampleLosses, sample_losses
from ..losses.vocabulary import check_fused_head
from ..masks.fingerprint import model_fingerprint
from ..masks.info import UNKNOWN_REVISION
from ..masks.mask import WeightMask
from ..memory.checkpointing import transformer_layers
from ..optim.masked_adamw import MaskedAdamW
from .checks import check_accelerator, check_is_base, check_mask_config, check_rows, check_save_delta, check_supported
from .hub_pushes import HubPushes
from .mask_callback import MaskedTraining, masked_optimizer, only_masked_weights_trainable
from .mask_options import MaskOptions
from .memory_watch import MemoryWatch
from .model_card import write_card
from .resuming import check_base_of, check_same_run, newest_whole_checkpoint, run_facts, whole_manifest
from .run_report import Given, write_run_report
from .trainer_base import FilledArguments
from .update_share import MovedShare
from .whole_saves import WholeSaves, add_to_save, holds_save, lend


class MaskMixin(HubPushes, WholeSaves):
    """
    Goes first in the bases of a [`~transformers.Trainer`], as in `class MaskedDPOTrainer(MaskMixin, DPOTrainer)`: it then
    trains the weights that a mask selects and leaves every other weight bit-identical.

    The arguments are those of the other base, and as keywords:

    Args:
        mask_config ([`MaskConfig`], *optional*):
            Compute a mask when training starts; it is saved as `wagle_mask.safetensors` in `args.output_dir`.
        mask ([`WeightMask`], `str` or `os.PathLike`, *optional*):
            A ready mask, or where one is saved. With neither `mask` nor `mask_config`, all trainable weights train.
        forget_dataset ([`~datasets.Dataset`], *optional*):
            Rows whose weights the mask of `mask_config` looks for, in any format of [`~data.formats.tokenize_row`]; by
            default the training rows, where they have `input_ids`.
        retain_dataset ([`~datasets.Dataset`], *optional*):
            Rows whose weights it should spare, for scores that compare two sets.

    [`~trainers.mask_options.MaskOptions`] are taken from `args`, where that has them.
    """

    _name = "Masked training"
    _tag_names = ["wagle-trl"]
    train_set = "train"  # what the rows of `train_dataset` are called in reports
    rows_a_sample = 1  # that go through the model together for each row of `train_dataset`
    sample_losses: SampleLosses = staticmethod(sample_losses)  # by which rows are attributed
    attributed_columns = ("input_ids", "labels")  # that these losses read
    planning_losses: SampleLosses | None = None  # stands in for them where the memory on a GPU is planned
    head_temperature: float | None = None  # of TRL's fused LM head, in trainers that have one

    def __init_subclass__(cls, **kwargs):
        """Give the class a signature with the arguments of both bases, for notebooks and `help`."""
        super().__init_subclass__(**kwargs)
        own = inspect.signature(cls.__init__).parameters.values()
        if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own):
            after = cls.__mro__[cls.__mro__.index(MaskMixin) + 1 :]
            base = next(base for base in after if "__init__" in vars(base) and base is not object)
            keywords = [parameter for parameter in own if parameter.kind is parameter.KEYWORD_ONLY]
            own = [
                *(p for p in inspect.signature(base.__init__).parameters.values() if p.kind != p.VAR_KEYWORD),
                *keywords,
            ]
        cls.__signature__ = inspect.Signature(list(own)[1:])

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
            raise ValueError("Pass either `mask` (a ready one) or `mask_config` (compute one), not both.")
        given = inspect.signature(super().__init__).bind_partial(*args, **kwargs).arguments
        masked = mask is not None or mask_config is not None
        check_rows(forget_dataset, "forget_dataset")
        check_rows(retain_dataset, "retain_dataset")
        if given.get("args") is not None:
            self._check_arguments(given["args"], masked, given)
        self.mask = WeightMask.load(mask) if isinstance(mask, str | os.PathLike) else mask
        super().__init__(*args, **kwargs)
        self._check_fused_heads()
        self.mask_options = self.args if isinstance(self.args, MaskOptions) else MaskOptions()
        if masked:
            check_accelerator(self.accelerator)
        if self.mask_options.save_delta:
            check_save_delta(masked, self.model)
        self.mask_config = mask_config
        self.forget_dataset = None if forget_dataset is None else self._prepare_further(forget_dataset, "forget")
        self.retain_dataset = None if retain_dataset is None else self._prepare_further(retain_dataset, "retain")
        if mask_config is not None:
            columns = set(self.attributed_dataset.column_names or ())
            check_mask_config(mask_config, self.model, columns >= set(self.attributed_columns), retain_dataset)
        revision = (vars(self.args).get("model_init_kwargs") or {}).get("revision")
        rows = {self.train_set: given.get("train_dataset"), "retain": retain_dataset}
        rows |= {} if forget_dataset is None else {"forget": forget_dataset}
        rows = {name: dataset for name, dataset in rows.items() if isinstance(dataset, Dataset)}
        self.given = Given(given.get("model", self.model), revision, rows)
        if self.mask is not None:
            self.mask.check(self.model)
        self.memory = MemoryWatch(self)
        self.add_callback(MaskedTraining(self))

    @staticmethod
    def _check_arguments(args: FilledArguments, masked: bool, given: dict[str, Any]) -> None:
        check_writable(args.output_dir)
        if masked:
            has_optimizer = (given.get("optimizers") or (None,))[0] is not None
            check_supported(args, has_optimizer or given.get("optimizer_cls_and_kwargs") is not None)

    def _check_fused_heads(self) -> None:
        """Have no fused LM head that is wrong for the model, or for the reference model of some trainers."""
        if self.head_temperature is None or self.is_deepspeed_enabled or self.is_fsdp_enabled:  # not yet whole there
            return
        models = [self.model, vars(self).get("ref_model")]
        with self.accelerator.autocast():  # as in training
            right = [check_fused_head(model, self.head_temperature) for model in models if model is not None]
        if not right[0]:
            self.planning_losses = None  # it is of the fused head

    # Rows to attribute

    def _prepare_further(self, dataset: Dataset, name: str) -> Dataset:
        """Tokenize rows that the base trainer knows nothing of."""
        return dataset.map(
            tokenize_row,
            fn_kwargs={"tokenizer": self.processing_class},
            remove_columns=dataset.column_names,
            desc=f"Tokenizing {name} dataset",
        )

    @property
    def attributed_dataset(self) -> Dataset:
        """Tokenized rows whose weights the mask looks for."""
        return self.train_dataset if self.forget_dataset is None else self.forget_dataset

    def _batches(self, dataset: Dataset) -> DataLoader:
        """Plain batches of prepared rows, in order."""
        rows = dataset.select_columns(list(self.attributed_columns))
        return DataLoader(rows, batch_size=self.args.per_device_train_batch_size, collate_fn=self._collate)  # pyright: ignore[reportArgumentType]

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        return DataCollatorForLanguageModeling(self.processing_class.pad_token_id)(rows)  # pyright: ignore[reportArgumentType]

    # Mask

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        As [`~transformers.Trainer.train`]; computes the mask first, or loads it from the checkpoint.

        `resume_from_checkpoint=True` resumes from the last checkpoint that is whole. A `ValueError` if a checkpoint is not
        as it was saved, or of other rows, another mask or another objective.
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
        Do what needs the original weights, before the checkpoint (if any) is loaded.

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
        self.mask = self.mask.to("cpu")  # the optimizer keeps what it needs on the device
        # Here the weights are still the original ones
        self._moved = MovedShare(self.model, self.mask)
        if self.mask_options.save_delta and self._base_fingerprint is None:
            check_is_base(self.model, self.mask)
            self._base_fingerprint = weights_fingerprint(self.model)
            if checkpoint is not None:
                check_base_of(Path(checkpoint), self._base_fingerprint)

    @property
    def mask_report(self) -> dict | None:
        """Report of the mask as [`~attribution.report.mask_report`] makes it; `None` without a mask."""
        return None if self.mask is None else mask_report(self.mask)

    @property
    def _origin(self) -> dict[str, str]:
        """What a mask says of the base model, where that has a name."""
        name = self.model.config._name_or_path
        return {"base_model": name, "base_revision": self.given.base_revision or UNKNOWN_REVISION} if name else {}

    def compute_mask(self) -> WeightMask:
        """
        Compute the mask of `mask_config` at the current weights and save it to `args.output_dir`. Attribution in sweeps
        that was interrupted goes on from its last sweep.
        """
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
        # Under DDP the gradients are still whole here: leave them to the optimizer, which clips by the selected ones
        return torch.tensor(0.0) if self._masked_optimizer is not None else super()._clip_grad_norm(model)

    # Logs and files

    _drawn_mask: WeightMask | None = None
    _base_fingerprint: str | None = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._masked_optimizer is not None and "grad_norm" in logs:
            norm = self._masked_optimizer.last_grad_norm
            assert norm is not None  # every step clips
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
        if with_delta and self._base_fingerprint is not None and self.args.should_save:
            assert self.mask is not None  # a delta holds what it selects
            info = self.mask.info
            missing = {name: text for name, text in self._origin.items() if getattr(info, name) is None}
            mask = WeightMask(self.mask.bits, self.mask.shapes, replace(info, **missing))
            SparseDelta.from_model(self.model, mask, self._base_fingerprint).save(folder)

    def write_card(self, folder: Path) -> list[str]:
        write_card(self, folder)
        return [CARD_FILE]

    def saved_fingerprint(self) -> str | None:
        """Fingerprint of the saved weights; `None` for adapters, and where each process holds a part of the model."""
        if isinstance(self.model, PeftModel) or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return None
        return model_fingerprint(self.model)

    def facts(self) -> dict[str, Any]:
        return run_facts(self)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write the card of [`~hub.card.model_card`], its report and the picture of the mask into `args.output_dir`."""
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        if self._saves_checkpoint:  # that has a card and a report of its own
            if not holds_save(folder):
                self._draw_mask(folder, folder)
            return
        with staging_folder(folder) as stage:
            self._draw_mask(folder, stage)
            lend(folder, stage, [PLOT_FILE, MASK_FILE, EVALUATION_FILE])
            write_run_report(self, stage)
            write_card(self, stage, model_name, dataset_name, tags)
            add_to_save(stage, folder, [REPORT_FILE, CARD_FILE, *([] if self.mask is None else [PLOT_FILE])])

    def _draw_mask(self, folder: Path, place: Path) -> None:
        """Have a picture of the mask, if any, in `place`, if `folder` has none; one that is there may be of another run."""
        if self.mask is not None and (self._drawn_mask is not self.mask or not (folder / PLOT_FILE).exists()):
            plot_mask(self.mask, place / PLOT_FILE)
            self._drawn_mask = self.mask
