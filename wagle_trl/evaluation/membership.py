"""Membership inference, computed from numbers alone: can forget rows be told from rows that no model saw?

Forget rows were members of the training data, `holdout` rows were not. Every attack gives a row one signal, which is
higher if the row looks more like a member. The area under the ROC curve (AUC) says how well the signal tells the two
sets apart.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score

from .metrics import FORGET, finite, records_by_set

HOLDOUT = "holdout"
MembershipAttack = Literal["loss", "zlib", "min_k", "min_k_plus_plus"]
# Attack -> fields of a record that its signal needs
ATTACKS: dict[MembershipAttack, tuple[str, ...]] = {
    "loss": ("avg_gt_loss",),
    "zlib": ("avg_gt_loss", "zlib_bytes"),
    "min_k": ("min_k",),
    "min_k_plus_plus": ("min_k_plus_plus",),
}


def lowest_mean(values: ArrayLike, k: float) -> float:
    r"""
    Mean of the lowest \\( \max(1, \lfloor k n \rfloor) \\) of \\( n \\) values.

    For the log-probabilities of an answer's tokens it is Min-K% Prob (https://huggingface.co/papers/2310.16789), for
    their z-scores Min-K%++ (https://huggingface.co/papers/2404.02936).

    Args:
        values (array of shape `(num_tokens,)`):
            Log-probabilities or z-scores.
        k (`float`):
            Share of the tokens, above `0.0` and up to `1.0`.

    Returns:
        `float`: Signal, higher for members.
    """
    values = np.sort(finite(values, "values"))
    return float(values[: max(1, int(k * values.size))].mean())


def zlib_bytes(text: str) -> int:
    """Bytes of `text` in UTF-8 after compression by zlib, as a measure of its information."""
    return len(zlib.compress(text.encode()))


def membership_signal(record: Mapping[str, Any], attack: MembershipAttack) -> float:
    r"""
    Signal of an attack for one record, higher for members.

    `loss` is the negative mean loss of the answer (Yeom et al., https://huggingface.co/papers/1709.01604). `zlib` is
    the same, divided by [`zlib_bytes`] (Carlini et al., https://huggingface.co/papers/2012.07805). `min_k` and
    `min_k_plus_plus` are [`lowest_mean`], which the record holds.

    Args:
        record (`dict`):
            Record from [`~wagle_trl.evaluation.tofu.evaluate_rows`].
        attack (`str`):
            A key of `ATTACKS`.

    Returns:
        `float`: Signal.
    """
    match attack:
        case "loss":
            return -record["avg_gt_loss"]
        case "zlib":
            return -record["avg_gt_loss"] / record["zlib_bytes"]
    return record[attack]


def membership_auc(members: ArrayLike, non_members: ArrayLike) -> float:
    """
    Area under the ROC curve: probability that a member has a higher signal than a non-member. Ties count half.

    Args:
        members (array of shape `(num_members,)`):
            Signals of rows that were trained on.
        non_members (array of shape `(num_non_members,)`):
            Signals of rows that were not.

    Returns:
        `float`: AUC. At `1.0` every member looks known; at `0.5` the sets cannot be told apart. Below `0.5`, members
        look less likely than unseen text, which gives them away as well.
    """
    members, non_members = finite(members, "members"), finite(non_members, "non_members")
    labels = np.repeat([1, 0], [members.size, non_members.size])
    return float(roc_auc_score(labels, np.concatenate([members, non_members])))


def privleak(auc: float, retrained_auc: float) -> float:
    r"""
    PrivLeak of MUSE (https://huggingface.co/papers/2407.06460), in percent:
    \\( 100 \, (A_\text{unlearned} - A_\text{retrained}) / A_\text{retrained} \\).

    MUSE's \\( A \\) is the probability that a forget row looks *less* likely than a holdout row: one minus
    [`membership_auc`] of Min-K%. MUSE takes the lowest 40% of the tokens.

    Args:
        auc (`float`):
            [`membership_auc`] of the unlearned model.
        retrained_auc (`float`):
            The same for the retrained model, which never saw the forget rows. It should be near `0.5`.

    Returns:
        `float`: PrivLeak, ideally `0.0`. Below zero the forget rows still look known (`-100.0` at worst); above zero
        they look less likely than unseen text.
    """
    if retrained_auc == 1.0:
        raise ValueError(
            "PrivLeak is not defined: to the retrained model, every forget row looks better known than every holdout row."
        )
    return 100 * ((1 - auc) - (1 - retrained_auc)) / (1 - retrained_auc)


def membership_summary(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """
    Compute `mia_{attack}_auc` for every attack in `ATTACKS` whose fields all records of the sets `forget` and `holdout`
    have.

    Args:
        records (`list[dict]`):
            Records from [`~wagle_trl.evaluation.tofu.evaluate_rows`], of any number of sets.

    Returns:
        `dict[str, float]`: AUCs by name. It is empty unless there are records of both sets.
    """
    by_set = records_by_set(records)
    if not by_set.keys() >= {FORGET, HOLDOUT}:
        return {}
    summary = {}
    for attack, fields in ATTACKS.items():
        if all(record.keys() >= set(fields) for name in (FORGET, HOLDOUT) for record in by_set[name]):
            signals = ([membership_signal(r, attack) for r in by_set[name]] for name in (FORGET, HOLDOUT))
            summary[f"mia_{attack}_auc"] = membership_auc(*signals)
    return summary
