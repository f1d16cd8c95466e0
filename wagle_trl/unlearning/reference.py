"""The reference as log-probabilities of answers under the model before unlearning. There is no second model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from tqdm.auto import tqdm

from ..files.run_folder import REFERENCE_FILE
from ..files.tensor_file import TensorFile, write_tensors
from ..losses.fused_head import answer_log_probs, in_eval_mode
from ..trainers.masked_sft import MaskedSFTTrainer

REFERENCE_COLUMN = "reference_log_probs"
_COUNTS = "num_answer_tokens"  # of each row
Values = list[list[float]]  # of the answer tokens of each row


class LogProbReference:
    """
    Log-probabilities of the answers of some kinds of rows: computed once, before the first step, into a column of these rows,
    and saved with the checkpoints, since the weights that they are of are gone when a run resumes.

    Args:
        trainer ([`~unlearning.base.UnlearningTrainer`]): Trainer with the rows.
        kinds (`list[str]`): Kinds of rows, of the trainer's `streams`.
    """

    def __init__(self, trainer, kinds: Sequence[str]):
        self.trainer, self.kinds = trainer, kinds
        self.is_ready = False  # a column of that name may be of another trainer's model

    @property
    def _rows(self) -> dict[str, Dataset]:
        return {kind: self.trainer.streams[kind] for kind in self.kinds}

    def prepare(self, checkpoint: str | None) -> None:
        """Compute the column, or load it from the checkpoint that training resumes from."""
        if checkpoint is not None:
            values = load_reference(Path(checkpoint) / REFERENCE_FILE, self._rows)
        elif self.is_ready:  # in a later call of `train` the weights are others
            return
        else:
            values = {kind: reference_log_probs(self.trainer, rows) for kind, rows in self._rows.items()}
        for kind, rows in self._rows.items():
            old = [REFERENCE_COLUMN] if REFERENCE_COLUMN in rows.column_names else []
            self.trainer.set_stream(kind, rows.remove_columns(old).add_column(REFERENCE_COLUMN, values[kind]))
        self.is_ready = True

    def save(self, folder: Path) -> None:
        save_reference(folder / REFERENCE_FILE, {kind: rows[REFERENCE_COLUMN] for kind, rows in self._rows.items()})


def num_answer_tokens(rows: Dataset) -> list[int]:
    """Count the answer tokens of each prepared row that are predicted."""
    return [sum(label != -100 for label in labels[1:]) for labels in rows["labels"]]


@torch.no_grad()
def reference_log_probs(trainer: MaskedSFTTrainer, dataset: Dataset) -> Values:
    """
    Compute the log-probabilities of the answer tokens of every row under the current weights, in eval mode.

    Args:
        trainer ([`~trainers.masked_sft.MaskedSFTTrainer`]): Trainer with the model.
        dataset ([`~datasets.Dataset`]): Prepared rows.
    """
    model, values = trainer.model, []
    batches = trainer._batches(dataset)
    with in_eval_mode(model):
        for batch in tqdm(batches, desc="Computing reference log-probabilities", disable=trainer.args.disable_tqdm):
            with trainer.compute_loss_context_manager():
                outputs = answer_log_probs(model, trainer._prepare_inputs(batch))
            rows = zip(outputs.log_probs.float(), outputs.label_mask)
            values += [log_probs[answer].tolist() for log_probs, answer in rows]
    return values


def save_reference(path: Path, values: Mapping[str, Values]) -> None:
    """Write the values of all rows of each stream, one row after the other, atomically."""
    tensors = {}
    for name, rows in values.items():
        flat, counts = _names(name)
        tensors[flat] = torch.tensor([value for row in rows for value in row], dtype=torch.float32)
        tensors[counts] = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    spec = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_tensors(path, spec, tensors.__getitem__, {})


def load_reference(path: Path, streams: Mapping[str, Dataset]) -> dict[str, Values]:
    """
    Read the values of the rows of each stream.

    Args:
        path (`pathlib.Path`): File of [`save_reference`].
        streams (`dict[str, Dataset]`): Rows prepared as when the file was saved; others raise a `ValueError`.
    """
    if not path.is_file():
        raise ValueError(f"No reference log-probabilities at {path}; resume from a checkpoint of this trainer.")
    file = TensorFile(path)
    return {name: _load_rows(file, path, name, rows) for name, rows in streams.items()}


def _load_rows(file: TensorFile, path: Path, name: str, rows: Dataset) -> Values:
    counts = num_answer_tokens(rows)
    flat_name, counts_name = _names(name)
    if counts_name in file and file[counts_name].tolist() != counts:
        raise ValueError(
            f"{path} is of other {name} rows, or of other answers in them, than those given ({len(rows)} rows with "
            f"{sum(counts)} answer tokens); resume with the same data, and the same options for it."
        )
    if flat_name not in file or file.shape(flat_name) != (sum(counts),):
        raise ValueError(
            f"{path} does not hold the log-probabilities of {len(rows)} {name} rows; it is damaged or hostile."
        )
    return [row.tolist() for row in file[flat_name].split(counts)]


def _names(stream: str) -> tuple[str, str]:
    prefix = "" if stream == "forget" else f"{stream}."
    return f"{prefix}{REFERENCE_COLUMN}", f"{prefix}{_COUNTS}"
