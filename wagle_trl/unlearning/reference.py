"""The reference: log-probabilities of the forget rows under the model before unlearning. There is no second model."""

from pathlib import Path

import torch
from datasets import Dataset
from tqdm.auto import tqdm

from ..files.tensor_file import TensorFile, write_tensors
from ..losses.fused_head import answer_log_probs
from ..trainers.masked_sft import MaskedSFTTrainer

REFERENCE_COLUMN = "reference_log_probs"
_COUNTS = "num_answer_tokens"  # of each row


@torch.no_grad()
def reference_log_probs(trainer: MaskedSFTTrainer, dataset: Dataset) -> list[list[float]]:
    """
    Compute the log-probabilities of the answer tokens of every row under the current weights, in eval mode.

    Args:
        trainer ([`~trainers.masked_sft.MaskedSFTTrainer`]): Trainer with the model.
        dataset ([`~datasets.Dataset`]): Prepared rows.
    """
    model, values = trainer.model, []
    was_training = model.training
    model.eval()
    batches = trainer._batches(dataset)
    for batch in tqdm(batches, desc="Computing reference log-probabilities", disable=trainer.args.disable_tqdm):
        with trainer.compute_loss_context_manager():
            outputs = answer_log_probs(model, trainer._prepare_inputs(batch))
        rows = zip(outputs.log_probs.float(), outputs.label_mask)
        values += [log_probs[answer].tolist() for log_probs, answer in rows]
    model.train(was_training)
    return values


def save_reference(path: Path, values: list[list[float]]) -> None:
    """Write the values of all rows, one row after the other, atomically."""
    flat = torch.tensor([value for row in values for value in row], dtype=torch.float32)
    counts = torch.tensor([len(row) for row in values], dtype=torch.int32)
    tensors = {REFERENCE_COLUMN: flat, _COUNTS: counts}
    spec = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_tensors(path, spec, tensors.__getitem__, {})


def load_reference(path: Path, dataset: Dataset) -> list[list[float]]:
    """
    Read the values of the rows of a data set.

    Args:
        path (`pathlib.Path`): File of [`save_reference`].
        dataset ([`~datasets.Dataset`]): Rows prepared as when the file was saved; others raise a `ValueError`.
    """
    if not path.is_file():
        raise ValueError(f"No reference log-probabilities at {path}; resume from a checkpoint of this trainer.")
    counts = [sum(label != -100 for label in labels[1:]) for labels in dataset["labels"]]
    file = TensorFile(path)
    if _COUNTS in file and file[_COUNTS].tolist() != counts:
        raise ValueError(
            f"{path} is of other rows, or of other answers in them, than those given ({len(dataset)} rows with {sum(counts)} "
            "answer tokens); resume with the same data, and the same options for it."
        )
    if REFERENCE_COLUMN not in file or file.shape(REFERENCE_COLUMN) != (sum(counts),):
        raise ValueError(
            f"{path} does not hold the log-probabilities of {len(dataset)} rows; it is damaged or hostile."
        )
    return [row.tolist() for row in file[REFERENCE_COLUMN].split(counts)]
