"""Rows with other answers: of the forget rows, to learn instead, and refusals to the retain rows, to prefer less."""

import math

from datasets import Dataset

from ..data.alternates import alternate_rows, load_refusals


def other_answers(trainer, forget: Dataset, retain: Dataset) -> dict[str, Dataset]:
    """
    Prepare the rows with other answers that a trainer's batches have.

    Args:
        trainer ([`~unlearning.base.UnlearningTrainer`]): Trainer with prepared forget rows.
        forget, retain ([`~datasets.Dataset`]): Rows as they were given.

    Returns:
        `dict[str, Dataset]`: By their kind: `alternate`, as many to each forget row as it meets epochs, one after the other;
        and `retain_refusal`, one to each retain row.
    """
    args, sources = trainer.args, {"alternate": forget, "retain_refusal": retain}
    kinds = [kind for kind in trainer.rows_of(args) if kind in sources]
    if not kinds:
        return {}
    if trainer._formatting_func is not None:
        raise ValueError(
            f"{trainer._name} puts other answers into the rows, which `formatting_func` hides; pass rows with a prompt and a "
            "completion instead."
        )
    per_row = {"alternate": math.ceil(trainer.num_epochs), "retain_refusal": 1}
    refusals = None if args.refusals is None else load_refusals(args.refusals)
    prepared = {}
    for kind in kinds:
        rows = alternate_rows(
            sources[kind],
            refusals,
            trainer.data_seed,
            per_row[kind],
            trainer.processing_class,
            args.dataset_text_field,
            "forget" if kind == "alternate" else "retain",
        )
        prepared[kind] = trainer._prepare_additional(rows, kind)
    return prepared
