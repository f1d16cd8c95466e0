"""Evaluate a model on sets of rows, as records and a summary. The evaluation can be interrupted at any time."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.compatibility import check_tokens
from ..data.tokenization import padding_token_id
from ..files.run_folder import PARTIAL_FILE
from ..text import printable
from .cache_key import evaluation_key
from .drift import check_same_weights, kl_to_base
from .membership import HOLDOUT, membership_summary
from .memorization import memorization_summary
from .metrics import records_by_set, summarize
from .resumable_records import PartialRecords
from .retrained_model import retrained_model_summary
from .samples import Row, Sample, prepare_rows
from .secrets import secret_summary
from .tofu import EvalOptions, evaluate_samples, warn_of_no_words

logger = logging.get_logger(__name__)

# In order of preference: sets that show what unlearning did to text that it did not use
UNSEEN_SETS = ("unseen_retain", "holdout", "retain")


def unseen_set(names: Collection[str]) -> str:
    """Choose the set on which a model is compared with its base."""
    unseen = [name for name in UNSEEN_SETS if name in names]
    if not unseen:
        raise ValueError("A base model needs text for the comparison: give retain, unseen or holdout rows.")
    return unseen[0]


def evaluate_sets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Iterable[Row]],
    options: EvalOptions | None = None,
    *,
    base: PreTrainedModel | None = None,
    folder: str | os.PathLike | None = None,
    progress: bool = True,
) -> list[Mapping[str, Any]]:
    """
    Evaluate every row of every set. No answers are generated for `holdout` rows, because no metric needs them.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model; its train or eval mode is restored.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer; nothing in it is changed.
        sets (`dict[str, list[dict]]`): Set name -> rows, as in [`~wagle_trl.evaluation.tofu.evaluate_rows`].
        options ([`~wagle_trl.evaluation.tofu.EvalOptions`], *optional*): Options of the evaluation.
        base ([`~transformers.PreTrainedModel`], *optional*): Model before unlearning. With it, the records of
            [`unseen_set`] have `kl_to_base`, KL(base || model) in nats per answer token.
        folder (`str` or `pathlib.Path`, *optional*): Existing folder for a file with the records so far. A later call
            with the same weights, rows and options evaluates only the rest. The caller removes the file
            (`PARTIAL_FILE`) when it has written the final records.
        progress (`bool`, *optional*, defaults to `True`): Whether to show progress bars.

    Returns:
        `list[dict]`: One record per row, in the order of the sets and rows.
    """
    options = options or EvalOptions()
    samples = {name: prepare_rows(rows, name, tokenizer, options) for name, rows in sets.items()}
    for name, members in samples.items():
        if cut := [sample.record["num_token_cut"] for sample in members if "num_token_cut" in sample.record]:
            logger.warning(
                f"max_length={options.max_length} of the set '{name}': {len(cut)} of {len(members)} rows are cut, {sum(cut)} "
                "answer tokens are not scored."
            )
    tokens = {
        name: [answer["input_ids"] for sample in part for answer in sample.answers] for name, part in samples.items()
    }
    check_tokens(model, tokenizer, tokens)
    compared = None
    if base is not None:
        check_same_weights(model, base)
        compared = unseen_set(samples)
    partial = None
    if folder is not None:
        key = evaluation_key(model, tokenizer, base, options, samples)
        partial = PartialRecords(Path(folder) / PARTIAL_FILE, key)
    done = {(record["set"], record["index"]): record for record in partial.records} if partial else {}
    if partial and done:
        logger.warning(
            f"{printable(partial.path)}: continuing after {len(done)} of {sum(map(len, samples.values()))} rows."
        )
    for name, members in samples.items():
        missing = [sample for sample in members if (name, sample.record["index"]) not in done]
        if not missing:
            continue
        set_base = base if name == compared else None
        for records in _evaluate_set(model, tokenizer, missing, options, set_base, progress):
            done |= {(name, record["index"]): record for record in records}
            if partial:
                partial.append(records)
    records = [done[name, index] for name, members in samples.items() for index in range(len(members))]
    warn_of_no_words(records)
    return records


def _evaluate_set(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    options: EvalOptions,
    base: PreTrainedModel | None,
    progress: bool,
) -> Iterator[list[dict[str, Any]]]:
    """Evaluate samples of one set, and yield their records batch by batch. With a base, they have `kl_to_base`."""
    if samples[0].record["set"] == HOLDOUT:
        options = replace(options, generate=False)
    for batch in evaluate_samples(model, tokenizer, samples, options, progress=progress):
        if base is not None:
            answers = [sample.answers[0] for sample in batch]
            divergences = kl_to_base(model, base, answers, padding_token_id(tokenizer))
            for sample, divergence in zip(batch, divergences, strict=True):
                sample.record["kl_to_base"] = divergence
        yield [sample.record for sample in batch]


# Summaries


def summarize_all(
    records: Sequence[Mapping[str, Any]], retrained: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, float]:
    """
    Compute all aggregates that the records allow: those of [`~wagle_trl.evaluation.metrics.summarize`],
    [`~wagle_trl.evaluation.memorization.memorization_summary`], [`~wagle_trl.evaluation.secrets.secret_summary`] and
    [`~wagle_trl.evaluation.membership.membership_summary`], and `kl_to_base_{set}`, the mean of KL(base || model) over
    all answer tokens of the set, in nats. With records of a retrained model, also those of
    [`~wagle_trl.evaluation.retrained_model.retrained_model_summary`].

    Args:
        records (`list[dict]`): Records from [`evaluate_sets`].
        retrained (`list[dict]`, *optional*): Records of the retrained model, from
            [`~wagle_trl.evaluation.retrained_model.read_retrained_records`].

    Returns:
        `dict[str, float]`: Aggregates by name.
    """
    summary = (
        summarize(records) | memorization_summary(records) | secret_summary(records) | membership_summary(records)
    )
    for name, members in records_by_set(records).items():
        if all("kl_to_base" in record for record in members):
            tokens = [record["num_token_gt"] for record in members]
            summary[f"kl_to_base_{name}"] = float(np.average([r["kl_to_base"] for r in members], weights=tokens))
    return summary if retrained is None else summary | retrained_model_summary(records, retrained)
