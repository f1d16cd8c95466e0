"""The reference as last hidden states: what whole distributions before unlearning follow from. There is no second model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn

from ..files.run_folder import STATES_FILE
from ..files.tensor_file import TensorFile, write_tensors
from ..losses.fused_head import base_of, in_eval_mode, short_rows
from ..losses.lm_head import Head, SplitModel
from ..losses.per_sample import Batch
from ..masks.scope import scope_parameters
from ..masks.values import take
from ..trainers.resuming import rows_key
from .reference import num_answer_tokens

Way = Literal["swap", "stored", "adapters"]
STATES = "reference_states"  # of a batch: states of the answer tokens, of all kinds of rows that have them
ROW_COLUMN = "reference_row"  # the position of a row, to find its stored states
STORED_BYTES = 2_000_000_000  # that `"auto"` stores at most: those of long texts are better made again


class StateReference:
    """
    Last hidden states of the answers of some kinds of rows under the model before unlearning, in one of three ways:

    - `"swap"`: the original values of the selected weights go into the model for one forward pass, and out again, bit for
      bit, before every optimizer step.
    - `"stored"`: the states are computed once, and read from a file in the output folder. Training all weights has no other
      way, nor have adapters that already say something when training starts.
    - `"adapters"`: adapters are switched off for one forward pass before every optimizer step.

    A run that resumes makes them again, of the base that it is given: it must be the one that the run started from.

    Args:
        trainer ([`~unlearning.base.UnlearningTrainer`]): Trainer with the rows.
        split ([`~losses.lm_head.SplitModel`]): Its model.
        kinds (`list[str]`): Kinds of rows, of the trainer's `streams` and in their order.
    """

    def __init__(self, trainer, split: SplitModel, kinds: list[str]):
        self.trainer, self.split, self.kinds = trainer, split, kinds
        trained = trained_parameters(trainer)
        self._trains_head = bool(split.head_parameters & trained)
        self._is_masked = trainer.mask is not None or trainer.mask_config is not None
        if self._trains_head and (self._is_masked or isinstance(trainer.model, PeftModel)):
            raise ValueError(
                f"{trainer._name} with retain_loss='{trainer.args.retain_loss}' compares distributions with those before "
                "unlearning, so the LM head must not train; leave the head, and embeddings tied to it, out of the mask's scope "
                "(--mask_exclude) or the adapters."
            )
        self._adapters_are_new = isinstance(trainer.model, PeftModel) and adapters_begin_as_nothing(trainer.model)
        self.ways: dict[str, Way] = {kind: self._way(kind) for kind in kinds}
        self._originals: dict[str, Tensor] = {}
        self._stored: TensorFile | None = None
        self._frozen_head: Head | None = None
        self._is_ready = False

    def _way(self, kind: str) -> Way:
        """Choose by cost: stored states save a forward pass per visit of a row, and take room."""
        args, rows = self.trainer.args, self.trainer.streams[kind]
        if isinstance(self.trainer.model, PeftModel):
            return "adapters" if self._adapters_are_new else "stored"
        if not self._is_masked:
            if args.reference_states == "swap":
                raise ValueError(
                    "reference_states='swap' exchanges the weights that a mask selects, and there is no mask; leave it at 'auto'."
                )
            return "stored"
        if args.reference_states != "auto":
            return args.reference_states
        visits = self.trainer.num_epochs * len(self.trainer.train_dataset) / len(rows)
        size = sum(num_answer_tokens(rows)) * self.split.width * self.trainer.model.dtype.itemsize
        return "stored" if visits > 1 and size <= STORED_BYTES else "swap"

    @property
    def columns(self) -> list[str]:
        """Columns of rows whose states are stored."""
        return [ROW_COLUMN] if "stored" in self.ways.values() else []

    @property
    def head(self) -> Head:
        """The LM head of the reference."""
        return self._frozen_head or self.split.head

    def prepare(self, checkpoint: str | None) -> None:
        """Keep the original weights, or compute the states, before the first step; a resumed run still has its base here."""
        if self._is_ready:  # in a later call of `train` the weights are others
            return
        trainer = self.trainer
        if "adapters" not in self.ways.values():
            trainer.remember_base(checkpoint)
        if self._trains_head:
            self._frozen_head = self.split.head.frozen_copy()
        if "swap" in self.ways.values():
            named = {name: trainer.model.get_parameter(name) for name in trainer.mask.bits}
            self._originals = {name: take(parameter, trainer.mask.bits[name]) for name, parameter in named.items()}
        stored = [kind for kind, way in self.ways.items() if way == "stored"]
        for kind, rows in trainer.streams.items():
            if ROW_COLUMN in rows.column_names:  # of another trainer that had these rows
                rows = rows.remove_columns([ROW_COLUMN])
            numbered = rows.add_column(ROW_COLUMN, [[i] for i in range(len(rows))]) if kind in stored else rows
            trainer.set_stream(kind, numbered)
        if stored:
            with trainer.accelerator.main_process_first():
                self._stored = self._store(stored)
        self._is_ready = True

    # Stored

    def _store(self, kinds: list[str]) -> TensorFile:
        """Write the states of all rows, one tensor per row, unless they are there."""
        trainer, path = self.trainer, Path(self.trainer.args.output_dir) / STATES_FILE
        rows = {kind: trainer.streams[kind] for kind in kinds}
        key = {"base": trainer._base_fingerprint} | {kind: rows_key(dataset) for kind, dataset in rows.items()}
        if path.is_file() and (file := TensorFile(path)).metadata == key:
            return file
        dtype = self._state_dtype
        specs = {
            f"{kind}.{i}": (dtype, (count, self.split.width))
            for kind, dataset in rows.items()
            for i, count in enumerate(num_answer_tokens(dataset))
        }
        states = (state for dataset in rows.values() for state in self._states_of(dataset))
        path.parent.mkdir(parents=True, exist_ok=True)
        label = None if trainer.args.disable_tqdm else "Storing the reference"
        write_tensors(path, specs, lambda name: next(states), key, progress=label)
        return TensorFile(path)

    @property
    def _state_dtype(self) -> torch.dtype:
        """Dtype of the last hidden states: that of the weights, also under autocast, which spares norms."""
        return self.trainer.model.dtype

    def _states_of(self, rows: Dataset) -> Iterator[Tensor]:
        """Compute the states of the answer tokens of each row."""
        for batch in self.trainer._batches(rows):
            batch = self.trainer._prepare_inputs(batch)
            counts = (batch["labels"][:, 1:] != -100).sum(1).tolist()
            yield from self._forward(batch).to(self._state_dtype).split(counts)

    # Swapped

    @contextmanager
    def _before_unlearning(self) -> Iterator[None]:
        """Make the model what it was before unlearning."""
        if "adapters" in self.ways.values():
            with self.trainer.model.disable_adapter():
                yield
            return
        optimizer = self.trainer._masked_optimizer
        optimizer.exchange(self._originals)
        try:
            yield
        finally:
            optimizer.exchange(self._originals)

    @torch.no_grad()
    def _forward(self, batch: Batch) -> Tensor:
        """Compute the states of the answer tokens of a batch, of shape `(tokens, width)`, in eval mode."""
        answer = batch["labels"][:, 1:] != -100
        inputs = {name: values for name, values in batch.items() if name != "labels"}
        backbone = self.split.model.get_submodule(self.split.backbone)
        with in_eval_mode(self.split.model), self.trainer.compute_loss_context_manager():
            states = backbone(**inputs, use_cache=False).last_hidden_state
        return states[:, :-1][answer]

    # Batches

    def add(self, batches: list[dict[str, Any]]) -> None:
        """
        Add the states of the reference to the micro-batches of an optimizer step, before the first of them goes forward:
        weights are exchanged twice per step, and what checkpointing computes again sees the trained ones.
        """
        computed = [kind for kind, way in self.ways.items() if way != "stored"]
        parts = [{} for _ in batches]
        if computed:
            with self._before_unlearning():
                for batch, found in zip(batches, parts):
                    for kind in computed:
                        found[kind] = self._forward(self._rows_of(batch, kind))
        for batch, found in zip(batches, parts):
            rows = iter(batch.pop(ROW_COLUMN, torch.empty(0)).view(-1, self._num_rows(batch)).tolist())
            for kind, way in self.ways.items():
                if way == "stored":
                    assert self._stored is not None  # `prepare` opens it
                    found[kind] = torch.cat([self._stored[f"{kind}.{i}"] for i in next(rows)])
            device = batch["labels"].device
            batch[STATES] = torch.cat([found[kind].to(device) for kind in self.kinds])

    def _num_rows(self, batch: dict[str, Any]) -> int:
        return len(batch["labels"]) // self.trainer.rows_per_sample

    def _rows_of(self, batch: dict[str, Any], kind: str) -> Batch:
        """The rows of a kind in a batch, without padding that only other kinds need."""
        size, number = self._num_rows(batch), list(self.trainer.streams).index(kind)
        chosen = slice(number * size, (number + 1) * size)
        return {name: values[chosen] for name, values in batch.items() if values.dim() > 1}


@torch.no_grad()
def adapters_begin_as_nothing(model: PeftModel) -> bool:
    """
    Whether a model is the same without its adapters, as it is with new ones. It is not with adapters that are trained already,
    nor with some that take over a part of the weights (PiSSA, OLoRA).
    """
    base = base_of(model)
    rows = short_rows(base, 1)
    with in_eval_mode(model):
        with_adapters = base(**rows).logits
        with model.disable_adapter():
            return torch.equal(base(**rows).logits, with_adapters)


def trained_parameters(trainer) -> set[nn.Parameter]:
    """Parameters of which some weights will train."""
    model = trainer.model
    if trainer.mask is not None:
        return {model.get_parameter(name) for name in trainer.mask.bits if trainer.mask.num_selected_of(name)}
    if trainer.mask_config is not None:
        config = trainer.mask_config
        return set(scope_parameters(model, config.mask_scope, config.mask_exclude).values())
    return {parameter for parameter in model.parameters() if parameter.requires_grad}
