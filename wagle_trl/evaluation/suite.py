"""The whole evaluation of a model: sets of rows in, records and a summary out. It can be interrupted at any time."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..mask import model_fingerprint
from .drift import check_same_weights, kl_to_base
from .membership import HOLDOUT, membership_summary, privleak
from .memorization import memorization_summary
from .metrics import FORGET, forget_quality, records_by_set, summarize, truth_ratios
from .partial import PartialRecords
from .scoring import padding_token_id
from .tofu import EvalOptions, Row, Sample, evaluate_samples, prepare_rows, read_records

PARTIAL_FILE = "wagle_records.partial.jsonl"
# The first of them that there is shows what unlearning did to text it never used
UNSEEN_SETS = ("unseen_retain", "holdout", "retain")


def unseen_set(names: Collection[str]) -> str:
    """Name of the set on which a model is compared with its base."""
    unseen = [name for name in UNSEEN_SETS if name in names]
    if not unseen:
        raise ValueError("A base model needs text to be compared on: give retain, unseen or holdout rows.")
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
) -> list[dict[str, Any]]:
    """
    One record for every row of every set. `holdout` rows are only scored: nobody asks what else a model would say.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model; its train or eval mode is restored.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer; nothing in it is changed.
        sets (`dict[str, list[dict]]`): Set name -> rows, as in [`~wagle_trl.evaluation.tofu.evaluate_rows`].
        options ([`~wagle_trl.evaluation.tofu.EvalOptions`], *optional*): How to evaluate them.
        base ([`~transformers.PreTrainedModel`], *optional*): The model before unlearning. The records of
            [`unseen_set`] then have `kl_to_base`, in nats per answer token.
        folder (`str` or `pathlib.Path`, *optional*): Existing folder for a file of the records done so far. A later
            call with the same weights, rows and options evaluates only the rest. Whoever writes the final records
            removes the file (`PARTIAL_FILE`).
        progress (`bool`, *optional*, defaults to `True`): Whether to show progress bars.

    Returns:
        `list[dict]`: Records, in the order of the sets and rows.
    """
    options = options or EvalOptions()
    samples = {name: prepare_rows(rows, name, tokenizer) for name, rows in sets.items()}
    compared = None
    if base is not None:
        check_same_weights(model, base)
        compared = unseen_set(samples)
    partial = None
    if folder is not None:
        partial = PartialRecords(Path(folder) / PARTIAL_FILE, _key(model, base, options, samples))
    done = {(record["set"], record["index"]): record for record in partial.records} if partial else {}
    for name, members in samples.items():
        missing = [sample for sample in members if (name, sample.record["index"]) not in done]
        if not missing:
            continue
        beside = base if name == compared else None
        for records in _evaluate_set(model, tokenizer, missing, options, beside, progress):
            done |= {(name, record["index"]): record for record in records}
            if partial:
                partial.append(records)
    return [done[name, index] for name, members in samples.items() for index in range(len(members))]


def _evaluate_set(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    options: EvalOptions,
    base: PreTrainedModel | None,
    progress: bool,
) -> Iterator[list[dict[str, Any]]]:
    """Records of samples of one set, batch by batch; with a base model they have `kl_to_base`."""
    if samples[0].record["set"] == HOLDOUT:
        options = replace(options, generate=False)
    for batch in evaluate_samples(model, tokenizer, samples, options, progress=progress):
        if base is not None:
            answers = [sample.answers[0] for sample in batch]
            divergences = kl_to_base(model, base, answers, padding_token_id(tokenizer))
            for sample, divergence in zip(batch, divergences, strict=True):
                sample.record["kl_to_base"] = divergence
        yield [sample.record for sample in batch]


def _key(
    model: PreTrainedModel, base: PreTrainedModel | None, options: EvalOptions, samples: Mapping[str, Sequence[Sample]]
) -> str:
    """Hash of all that records depend on. Not the batch size: after one that did not fit, a smaller one goes on."""
    models = [None if m is None else [model_fingerprint(m), str(m.dtype)] for m in (model, base)]
    content = [models, asdict(replace(options, batch_size=1)), {name: list(part) for name, part in samples.items()}]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


# Summaries


def read_reference(
    path: str | os.PathLike, sets: Mapping[str, Sequence[Row]], options: EvalOptions
) -> list[dict[str, Any]]:
    """
    Forget and holdout records of a model that never saw the forget rows, for [`summarize_all`].

    Args:
        path (`str` or `pathlib.Path`): Records as written by [`~wagle_trl.evaluation.tofu.write_records`].
        sets (`dict[str, list[dict]]`): The rows that will be evaluated.
        options ([`~wagle_trl.evaluation.tofu.EvalOptions`]): How they will be evaluated.

    Returns:
        `list[dict]`: The records. If neither a forget quality nor PrivLeak can come of them: a `ValueError`, before
        any long work.
    """
    forget = sets.get(FORGET, [])
    with_ratios = bool(forget) and all(row.get("perturbed_answer") for row in forget)
    with_holdout = bool(forget) and HOLDOUT in sets
    if not (with_ratios or with_holdout):
        raise ValueError(
            "A reference needs forget rows, all of them with `perturbed_answer`, or holdout rows as well."
        )
    records = [record for record in read_records(path) if record.get("set") in (FORGET, HOLDOUT)]
    members = [record for record in records if record["set"] == FORGET]
    if not members:
        raise ValueError(f"{path} has no records of the set '{FORGET}'.")
    auc = membership_summary(records).get("mia_min_k_auc") if with_holdout else None
    shares = {record.get("mia_k") for record in records}
    if auc is not None and shares != {options.mia_k}:
        raise ValueError(f"{path}: its `min_k` is of {shares} of the tokens, that of this evaluation {options.mia_k}.")
    try:
        if not with_ratios:
            _check_privleak(auc)
        elif auc is None:
            truth_ratios(members)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return records


def _check_privleak(reference_auc: float | None) -> None:
    if reference_auc is None:
        raise ValueError(f"PrivLeak needs records of the set '{HOLDOUT}' as well, all of them with `min_k`.")
    privleak(reference_auc, reference_auc)


def summarize_all(
    records: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, float]:
    """
    All aggregates that the records allow: [`~wagle_trl.evaluation.metrics.summarize`],
    [`~wagle_trl.evaluation.memorization.memorization_summary`],
    [`~wagle_trl.evaluation.membership.membership_summary`], `kl_to_base_{set}` (mean over all answer tokens of the
    set, in nats), and with a reference `forget_quality`, `forget_quality_ks` and `privleak`.

    Args:
        records (`list[dict]`): Records from [`evaluate_sets`].
        reference (`list[dict]`, *optional*): Records of a model that never saw the forget rows, from
            [`read_reference`].

    Returns:
        `dict[str, float]`: Aggregates by name.
    """
    summary = summarize(records) | memorization_summary(records) | membership_summary(records)
    for name, members in records_by_set(records).items():
        if all("kl_to_base" in record for record in members):
            tokens = [record["num_token_gt"] for record in members]
            summary[f"kl_to_base_{name}"] = float(np.average([r["kl_to_base"] for r in members], weights=tokens))
    return summary if reference is None else summary | _beside_reference(records, reference)


def _beside_reference(
    records: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    summary = {}
    forget, other = (records_by_set(part).get(FORGET, []) for part in (records, reference))
    if forget and other and all("average_perturb_loss" in record for record in (*forget, *other)):
        quality = forget_quality(truth_ratios(forget), truth_ratios(other))
        summary |= {"forget_quality": quality.p_value, "forget_quality_ks": quality.statistic}
    aucs = [membership_summary(part).get("mia_min_k_auc") for part in (records, reference)]
    if None not in aucs and aucs[1] < 1.0:
        summary["privleak"] = privleak(*aucs)
    return summary
