"""Rows of any format as the batches that attribution reads."""

from datasets import Dataset
from torch.utils.data import DataLoader
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from .formats import Processing
from .lengths import fit_rows
from .tokenization import DEFAULT, RowOptions, padding_token_id, tokenize_dataset


def row_batches(
    dataset: Dataset, processing: Processing, batch_size: int, name: str, options: RowOptions = DEFAULT
) -> DataLoader:
    """
    Batches of `input_ids`, `attention_mask` and `labels`, padded on the right, in the order of the rows.

    Args:
        dataset ([`~datasets.Dataset`]): Rows of any format, see [`~data.tokenization.tokenize_row`].
        processing ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]): The model's.
        batch_size (`int`): Rows in a batch.
        name (`str`): What messages call the set.
        options ([`~data.tokenization.RowOptions`], *optional*): What is scored, and how long rows may be.
    """
    rows, _ = fit_rows(tokenize_dataset(dataset, processing, options, name), options, name, "truncate")  # pyright: ignore[reportArgumentType]
    collate = DataCollatorForLanguageModeling(padding_token_id(processing))
    return DataLoader(rows.select_columns(["input_ids", "labels"]), batch_size=batch_size, collate_fn=collate)  # pyright: ignore[reportArgumentType]
