"""A model beside one that never saw the forget rows, on numbers only: forget quality and PrivLeak."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils import logging

from ..files.schemas import Record
from ..text import printable
from .membership import HOLDOUT, membership_summary, privleak
from .metrics import FORGET, forget_quality, records_by_set, truth_ratios
from .tofu import EvalOptions, Row, read_records

logger = logging.get_logger(__name__)


def read_reference(path: str | os.PathLike, sets: Mapping[str, Sequence[Row]], options: EvalOptions) -> list[Record]:
    """
    Forget and holdout records of a model that never saw the forget rows, for
    [`~wagle_trl.evaluation.suite.summarize_all`].

    Args:
        path (`str` or `pathlib.Path`): Records as written by [`~wagle_trl.evaluation.tofu.write_records`].
        sets (`dict[str, list[dict]]`): The rows that will be evaluated.
        options ([`~wagle_trl.evaluation.tofu.EvalOptions`]): How they will be evaluated.

    Returns:
        `list[dict]`: The records. If neither a forget quality nor PrivLeak can come of them, or if they are of other
        rows: a `ValueError`, before any long work.
    """
    forget = sets.get(FORGET, [])
    with_ratios = bool(forget) and all(row.get("perturbed_answer") for row in forget)
    with_holdout = bool(forget) and HOLDOUT in sets
    if not (with_ratios or with_holdout):
        raise ValueError(
            "A reference needs forget rows, all of them with `perturbed_answer`, or holdout rows as well."
        )
    records = [record for record in read_records(path) if record.get("set") in (FORGET, HOLDOUT)]
    try:
        _check_rows(records, sets)
        auc = _comparable_auc(records, options) if with_holdout else None
        if not with_ratios:
            _check_privleak(auc)
        elif auc is None:
            truth_ratios(records_by_set(records)[FORGET])
    except ValueError as error:
        raise ValueError(f"{printable(path)}: {error}") from error
    return records


def _check_rows(records: Sequence[Mapping[str, Any]], sets: Mapping[str, Sequence[Row]]) -> None:
    """A `ValueError` unless there are forget records, and as many of each set as rows."""
    counts = {name: sum(record["set"] == name for record in records) for name in (FORGET, HOLDOUT)}
    if not counts[FORGET]:
        raise ValueError(f"It has no records of the set '{FORGET}'.")
    for name, count in counts.items():
        if count and name in sets and count != len(sets[name]):
            raise ValueError(
                f"It has {count} records of the set '{name}', where {len(sets[name])} rows are to be evaluated: a "
                "reference must be of the same rows."
            )


def _comparable_auc(records: Sequence[Mapping[str, Any]], options: EvalOptions) -> float | None:
    """AUC of Min-K% at the share of tokens that will be evaluated, if the records have it."""
    auc = membership_summary(records).get("mia_min_k_auc")
    shares = {record.get("mia_k", "an unknown share") for record in records}
    if auc is not None and shares != {options.mia_k}:
        found = " and ".join(sorted(map(str, shares)))
        raise ValueError(f"Its `min_k` is of {found} of the tokens, that of this evaluation of {options.mia_k}.")
    return auc


def _check_privleak(reference_auc: float | None) -> None:
    if reference_auc is None:
        raise ValueError(f"PrivLeak needs records of the set '{HOLDOUT}' as well, all of them with `min_k`.")
    privleak(reference_auc, reference_auc)


def beside_reference(records: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """
    `forget_quality`, `forget_quality_ks` and `privleak`, as far as both have what they are made of.

    Args:
        records (`list[dict]`): Records of the model.
        reference (`list[dict]`): Records of a model that never saw the forget rows, from [`read_reference`].

    Returns:
        `dict[str, float]`: Aggregates by name.
    """
    summary = {}
    forget, other = (records_by_set(part).get(FORGET, []) for part in (records, reference))
    fields = {"avg_paraphrased_loss", "average_perturb_loss"}
    if forget and other and all(record.keys() >= fields for record in (*forget, *other)):
        if min(len(forget), len(other)) < 2:
            logger.warning(
                "Forget quality has no value: it compares distributions, and one row of the forget set is none."
            )
        else:
            quality = forget_quality(truth_ratios(forget), truth_ratios(other))
            summary |= {"forget_quality": quality.p_value, "forget_quality_ks": quality.statistic}
    auc, reference_auc = (membership_summary(part).get("mia_min_k_auc") for part in (records, reference))
    if auc is not None and reference_auc == 1.0:
        logger.warning("PrivLeak has no value: under the reference, every forget row looks known beside holdout.")
    elif auc is not None and reference_auc is not None:
        summary["privleak"] = privleak(auc, reference_auc)
    return summary
