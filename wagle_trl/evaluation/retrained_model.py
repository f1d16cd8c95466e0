"""Metrics that need the retrained model, which never saw the forget rows: forget quality and PrivLeak.

They are computed from the records of both models.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils import logging

from ..files.schemas import Record
from ..text import printable
from .membership import HOLDOUT, membership_summary, privleak
from .metrics import FORGET, forget_quality, records_by_set, truth_ratios
from .samples import Row
from .tofu import EvalOptions, read_records

logger = logging.get_logger(__name__)


def read_retrained_records(
    path: str | os.PathLike, sets: Mapping[str, Sequence[Row]], options: EvalOptions
) -> list[Record]:
    """
    Read forget and holdout records of the retrained model, for [`~wagle_trl.evaluation.suite.summarize_all`].

    Raise a `ValueError`, before any long work, if the records allow neither forget quality nor PrivLeak, or if they
    are of other rows than those to be evaluated.

    Args:
        path (`str` or `pathlib.Path`): File from [`~wagle_trl.evaluation.tofu.write_records`].
        sets (`dict[str, list[dict]]`): Rows that will be evaluated, by name of the set.
        options ([`~wagle_trl.evaluation.tofu.EvalOptions`]): Options of that evaluation.

    Returns:
        `list[dict]`: The records.
    """
    forget = sets.get(FORGET, [])
    with_ratios = bool(forget) and all(row.get("perturbed_answer") for row in forget)
    with_holdout = bool(forget) and HOLDOUT in sets
    if not (with_ratios or with_holdout):
        raise ValueError(
            "Records of a retrained model need forget rows, all of them with `perturbed_answer`, or holdout rows as well."
        )
    records = [record for record in read_records(path) if record.get("set") in (FORGET, HOLDOUT)]
    try:
        _check_rows(records, sets)
        auc = _min_k_auc(records, options) if with_holdout else None
        if auc is None and with_ratios:
            truth_ratios(records_by_set(records)[FORGET])  # raises a `ValueError` if forget quality is impossible
        elif auc is None:
            raise ValueError(f"PrivLeak needs records of the set '{HOLDOUT}' as well, all of them with `min_k`.")
        elif not with_ratios:
            privleak(auc, auc)  # raises a `ValueError` if PrivLeak is not defined
    except ValueError as error:
        raise ValueError(f"{printable(path)}: {error}") from error
    return records


def _check_rows(records: Sequence[Mapping[str, Any]], sets: Mapping[str, Sequence[Row]]) -> None:
    """Raise a `ValueError` unless there are forget records, and each set has as many records as rows."""
    counts = {name: sum(record["set"] == name for record in records) for name in (FORGET, HOLDOUT)}
    if not counts[FORGET]:
        raise ValueError(f"The file has no records of the set '{FORGET}'.")
    for name, count in counts.items():
        if count and name in sets and count != len(sets[name]):
            raise ValueError(
                f"The file has {count} records of the set '{name}', but {len(sets[name])} rows are to be evaluated; the "
                "retrained model must be evaluated on the same rows."
            )


def _min_k_auc(records: Sequence[Mapping[str, Any]], options: EvalOptions) -> float | None:
    """AUC of Min-K%, or `None` without its fields. Raise a `ValueError` if `mia_k` differs from that of the options."""
    auc = membership_summary(records).get("mia_min_k_auc")
    shares = {record.get("mia_k", "an unknown share") for record in records}
    if auc is not None and shares != {options.mia_k}:
        found = " and ".join(sorted(map(str, shares)))
        raise ValueError(f"The file has `min_k` with mia_k {found}, but this evaluation has mia_k {options.mia_k}.")
    return auc


def retrained_model_summary(
    records: Sequence[Mapping[str, Any]], retrained: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """
    Compute `forget_quality`, `forget_quality_ks` and `privleak`, as far as the records of both models allow.

    Args:
        records (`list[dict]`): Records of the unlearned model.
        retrained (`list[dict]`): Records of the retrained model, from [`read_retrained_records`].

    Returns:
        `dict[str, float]`: Aggregates by name.
    """
    summary = {}
    forget, other = (records_by_set(part).get(FORGET, []) for part in (records, retrained))
    fields = {"avg_paraphrased_loss", "average_perturb_loss"}
    if forget and other and all(record.keys() >= fields for record in (*forget, *other)):
        if min(len(forget), len(other)) < 2:
            logger.warning(
                "Forget quality has no value: it compares two distributions, which needs two rows of the forget set each."
            )
        else:
            quality = forget_quality(truth_ratios(forget), truth_ratios(other))
            summary |= {"forget_quality": quality.p_value, "forget_quality_ks": quality.statistic}
    auc, retrained_auc = (membership_summary(part).get("mia_min_k_auc") for part in (records, retrained))
    if auc is not None and retrained_auc == 1.0:
        logger.warning(
            "PrivLeak has no value: the retrained model tells all forget rows from all holdout rows (AUC 1)."
        )
    elif auc is not None and retrained_auc is not None:
        summary["privleak"] = privleak(auc, retrained_auc)
    return summary
