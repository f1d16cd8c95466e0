"""Membership inference: can one tell forget rows from rows that no model saw? On numbers only.

Forget rows were members of the training data, `holdout` rows were not. Every attack gives a row one score, higher where
it looks more like a member; the area under the ROC curve (AUC) says how well the score tells the two sets apart.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score

from .metrics import FORGET, finite, records_by_set

HOLDOUT = "holdout"
# Name of an attack -> the fields of a record that its score is made of
ATTACKS = {
    "loss": ("avg_gt_loss",),
    "zlib": ("avg_gt_loss", "zlib_bytes"),
    "min_k": ("min_k",),
    "min_k_plus_plus": ("min_k_plus_plus",),
}


def lowest_mean(values: ArrayLike, k: float) -> float:
    r"""
    Mean of the lowest \\( \max(1, \lfloor k n \rfloor) \\) of \\( n \\) values.

    Of the log-probabilities of an answer's tokens it is Min-K% Prob (https://huggingface.co/papers/2310.16789), of
    their z-scores Min-K%++ (https://huggingface.co/papers/2404.02936).

    Args:
        values (array of shape `(num_tokens,)`):
            Log-probabilities or z-scores.
        k (`float`):
            Share of the tokens, above `0.0` and up to `1.0`.

    Returns:
        `float`: Score, higher for members.
    """
    values = np.sort(finite(values, "values"))
    return float(values[: max(1, int(k * values.size))].mean())


def zlib_bytes(text: str) -> int:
    """Bytes of `text` in UTF-8 after compression by zlib: how much there is to know in it."""
    return len(zlib.compress(text.encode()))


def membership_score(record: Mapping[str, Any], attack: str) -> float:
    r"""
    Score of one record, higher for members.

    `loss` is the negative mean loss of the answer (Yeom et al., https://huggingface.co/papers/1709.01604), `zlib` the
    same over [`zlib_bytes`] (Carlini et al., https://huggingface.co/papers/2012.07805); `min_k` and `min_k_plus_plus`
    are [`lowest_mean`], as the record has them.

    Args:
        record (`dict`):
            Record as written by [`~wagle_trl.evaluation.tofu.evaluate_rows`].
        attack (`str`):
            A key of `ATTACKS`.

    Returns:
        `float`: Score.
    """
    match attack:
        case "loss":
            return -record["avg_gt_loss"]
        case "zlib":
            return -record["avg_gt_loss"] / record["zlib_bytes"]
    return record[attack]


def membership_auc(members: ArrayLike, non_members: ArrayLike) -> float:
    """
    Area under the ROC curve: probability that a member scores higher than a non-member, ties counted half.

    Args:
        members (array of shape `(num_members,)`):
            Scores of rows that were trained on.
        non_members (array of shape `(num_non_members,)`):
            Scores of rows that were not.

    Returns:
        `float`: `1.0` where every member looks known, `0.5` where the sets cannot be told apart, below where members
        look less likely than text never seen, which gives them away as well.
    """
    members, non_members = finite(members, "members"), finite(non_members, "non_members")
    labels = np.repeat([1, 0], [members.size, non_members.size])
    return float(roc_auc_score(labels, np.concatenate([members, non_members])))


def privleak(auc: float, reference_auc: float) -> float:
    r"""
    PrivLeak of MUSE (https://huggingface.co/papers/2407.06460), in percent:
    \\( 100 \, (A_\text{unlearned} - A_\text{retrained}) / A_\text{retrained} \\).

    MUSE's \\( A \\) is the probability that a forget row looks *less* likely than a holdout row: one minus
    [`membership_auc`] of Min-K%. MUSE takes the lowest 40% of the tokens.

    Args:
        auc (`float`):
            [`membership_auc`] of the unlearned model.
        reference_auc (`float`):
            The same of a model that never saw the forget rows; near `0.5`.

    Returns:
        `float`: `0.0` is ideal, below zero the forget rows still look known (`-100.0` at worst), above zero they look
        less likely than text never seen.
    """
    if reference_auc == 1.0:
        raise ValueError("PrivLeak is not defined: under the reference, every forget row looks known beside holdout.")
    return 100 * ((1 - auc) - (1 - reference_auc)) / (1 - reference_auc)


def membership_summary(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """
    `mia_{attack}_auc` of every attack in `ATTACKS` whose fields all records of the sets `forget` and `holdout` have;
    nothing without both sets.

    Args:
        records (`list[dict]`):
            Records as written by [`~wagle_trl.evaluation.tofu.evaluate_rows`], of any number of sets.

    Returns:
        `dict[str, float]`: AUCs by name.
    """
    by_set = records_by_set(records)
    if not by_set.keys() >= {FORGET, HOLDOUT}:
        return {}
    summary = {}
    for attack, fields in ATTACKS.items():
        if all(record.keys() >= set(fields) for name in (FORGET, HOLDOUT) for record in by_set[name]):
            scores = ([membership_score(r, attack) for r in by_set[name]] for name in (FORGET, HOLDOUT))
            summary[f"mia_{attack}_auc"] = membership_auc(*scores)
    return summary
