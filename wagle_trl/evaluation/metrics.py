"""Metrics of TOFU (https://huggingface.co/papers/2401.06121), computed from numbers alone.

No model is needed here, so saved records give the same aggregates, whether they are ours or the benchmark authors'. All
losses are mean cross-entropies over the answer tokens of one sample, in nats per token. The end-of-sequence token is
included.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax
from scipy.stats import hmean, ks_2samp

FORGET = "forget"
MULTIPLE_CHOICE_SETS = ("real_authors", "world_facts")
UTILITY_SETS = ("retain", *MULTIPLE_CHOICE_SETS)
UTILITY_METRICS = ("prob", "rougeL_recall", "truth_ratio")
UTILITY_KEYS = tuple(f"{name}_{metric}" for name in UTILITY_SETS for metric in UTILITY_METRICS)

# exp(+-700) still fits in a float64, so that R and 1/R stay finite even for a model that diverged
MAX_LOG_RATIO = 700.0


class ForgetQuality(NamedTuple):
    """
    Result of [`forget_quality`].

    Attributes:
        p_value (`float`):
            Probability of a distance at least this large if both models had the same distribution of truth ratios.
            A high value means that the rows are well forgotten. The TOFU authors publish its logarithm.
        statistic (`float`):
            Distance: the largest gap between the two empirical distribution functions, from `0.0` to `1.0`.
    """

    p_value: float
    statistic: float


def finite(values: ArrayLike, name: str) -> np.ndarray:
    """Return `values` as an array. Raise a `ValueError` with their name if there are none, or not all are finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"`{name}` is empty: there is nothing to evaluate.")
    if not np.isfinite(array).all():
        bad = np.count_nonzero(~np.isfinite(array))
        raise ValueError(f"{bad} of {array.size} values in `{name}` are NaN or infinite: the model may have diverged.")
    return array


def answer_probability(loss: ArrayLike) -> np.ndarray:
    r"""
    Length-normalized probability of an answer: \\( P(a|q)^{1/|a|} = \exp(-\text{loss}) \\), element by element.

    Args:
        loss (`float` or array):
            Mean cross-entropy of the answer, in nats per token.

    Returns:
        Probability, of the same shape as `loss`.
    """
    return np.exp(-finite(loss, "loss"))


def multiple_choice_probability(loss: float, other_losses: ArrayLike) -> float:
    r"""
    Probability of the correct answer among the given options:
    \\( \exp(-l) / (\exp(-l) + \sum_i \exp(-l_i)) \\).

    TOFU uses it for real authors and world facts, which are multiple-choice questions.

    Args:
        loss (`float`):
            Mean cross-entropy of the correct answer, in nats per token.
        other_losses (array of shape `(num_options - 1,)`):
            The same for every wrong answer.

    Returns:
        `float`: Probability. It is `1 / num_options` if all options are equally likely.
    """
    return float(softmax(np.append(-finite(loss, "loss"), -finite(other_losses, "other_losses")))[0])


def truth_ratio(paraphrased_loss: float, perturbed_losses: ArrayLike) -> float:
    r"""
    Truth ratio: how likely wrong answers are, compared with a correct one:
    \\( R = \exp(-\frac{1}{n} \sum_i l_i) / \exp(-l_{\text{paraphrased}}) \\).

    The numerator is the geometric mean of the wrong answers' probabilities. Near `0.0` the model knows the fact; at
    `1.0` it cannot tell right from wrong. If a row has no paraphrase, TOFU takes the answer itself.

    Args:
        paraphrased_loss (`float`):
            Mean cross-entropy of the paraphrased correct answer, in nats per token.
        perturbed_losses (array of shape `(num_perturbed,)`):
            The same for every wrong answer.

    Returns:
        `float`: Truth ratio, positive and finite.
    """
    log_ratio = finite(paraphrased_loss, "paraphrased_loss") - finite(perturbed_losses, "perturbed_losses").mean()
    return float(np.exp(np.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)))


def forget_truth_ratio(ratios: ArrayLike) -> float:
    r"""
    Truth ratio of a forget set: \\( \text{mean} \min(R, 1/R) \\). At `1.0` the model knows nothing of it.

    Args:
        ratios (array of shape `(num_samples,)`):
            [`truth_ratio`] of every sample.

    Returns:
        `float`: Mean, from `0.0` to `1.0`.
    """
    ratios = finite(ratios, "ratios")
    return float(np.minimum(ratios, 1 / np.maximum(ratios, np.finfo(np.float64).tiny)).mean())


def utility_truth_ratio(ratios: ArrayLike) -> float:
    r"""
    Truth ratio of a set that must stay known: \\( \text{mean} \max(0, 1 - R) \\). At `1.0` the model knows all of it.

    Args:
        ratios (array of shape `(num_samples,)`):
            [`truth_ratio`] of every sample.

    Returns:
        `float`: Mean, from `0.0` to `1.0`.
    """
    return float(np.maximum(0, 1 - finite(ratios, "ratios")).mean())


def forget_quality(ratios: ArrayLike, retrained_ratios: ArrayLike) -> ForgetQuality:
    """
    Forget quality: two-sample Kolmogorov-Smirnov test of whether the truth ratios on the forget set could be those of
    the retrained model.

    `R` and `1/R` give the same result, because the test only depends on order.

    Args:
        ratios (array of shape `(num_samples,)`):
            [`truth_ratio`] of every forget sample under the unlearned model.
        retrained_ratios (array of shape `(num_retrained_samples,)`):
            The same under the retrained model, which was trained without the forget rows.

    Returns:
        [`ForgetQuality`]: p-value and statistic.

    Example:

    ```python
    >>> from wagle_trl.evaluation.metrics import forget_quality

    >>> forget_quality([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    ForgetQuality(p_value=1.0, statistic=0.0)
    ```
    """
    samples = finite(ratios, "ratios"), finite(retrained_ratios, "retrained_ratios")
    if min(sample.size for sample in samples) < 2:
        raise ValueError(
            "Forget quality compares two distributions, and one row has none: it needs two rows of each model."
        )
    result = ks_2samp(*samples)
    return ForgetQuality(float(result.pvalue), float(result.statistic))  # pyright: ignore[reportAttributeAccessIssue]


def model_utility(values: ArrayLike) -> float:
    """
    Model utility: harmonic mean of probability, ROUGE-L recall and truth ratio on the retain set, real authors and world
    facts. If one value is `0.0`, so is the utility.

    Args:
        values (array of shape `(9,)`):
            The nine aggregates, in any order, each from `0.0` to `1.0`.

    Returns:
        `float`: Harmonic mean.
    """
    values = finite(values, "values")
    if values.shape != (len(UTILITY_KEYS),):
        raise ValueError(
            f"`values` has shape {values.shape}: model utility is the mean of {len(UTILITY_KEYS)} values."
        )
    return float(hmean(values))


def records_by_set(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Group records by the name of their set. Raise a `ValueError` if there are no records."""
    if not records:
        raise ValueError("`records` is empty: there is nothing to evaluate.")
    by_set = {}
    for record in records:
        by_set.setdefault(record["set"], []).append(record)
    return by_set


def truth_ratios(records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """
    Recompute the truth ratio of every record from its losses, for [`forget_quality`].

    Args:
        records (`list[dict]`):
            Records with `avg_paraphrased_loss` and `average_perturb_loss`.

    Returns:
        `np.ndarray` of shape `(num_records,)`.
    """
    lacking = sum(not {"avg_paraphrased_loss", "average_perturb_loss"} <= set(record) for record in records)
    if lacking:
        raise ValueError(
            f"{lacking} of {len(records)} records have no losses of perturbed answers, which truth ratios need; evaluate "
            "rows that have `perturbed_answer`."
        )
    return np.array([truth_ratio(r["avg_paraphrased_loss"], r["average_perturb_loss"]) for r in records])


def _set_probability(records: Sequence[Mapping[str, Any]], name: str) -> float:
    if name not in MULTIPLE_CHOICE_SETS:
        return float(answer_probability([record["avg_gt_loss"] for record in records]).mean())
    return float(np.mean([multiple_choice_probability(r["avg_gt_loss"], r["average_perturb_loss"]) for r in records]))


def _set_summary(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    # An aggregate over only those samples that have the field could not be compared with other evaluations
    fields = set.intersection(*(set(record) for record in records))
    summary = {}
    if fields >= {"avg_gt_loss", *(["average_perturb_loss"] if name in MULTIPLE_CHOICE_SETS else [])}:
        summary[f"{name}_prob"] = _set_probability(records, name)
    if "rougeL_recall" in fields:
        recalls = finite([record["rougeL_recall"] for record in records], "rougeL_recall")
        summary[f"{name}_rougeL_recall"] = float(recalls.mean())
    elif "rougeL_recall_unicode" in fields:  # rows of another script than the published metric reads
        recalls = finite([record["rougeL_recall_unicode"] for record in records], "rougeL_recall_unicode")
        summary[f"{name}_rougeL_recall_unicode"] = float(recalls.mean())
    if fields >= {"avg_paraphrased_loss", "average_perturb_loss"}:
        aggregate = forget_truth_ratio if name == FORGET else utility_truth_ratio
        summary[f"{name}_truth_ratio"] = aggregate(truth_ratios(records))
    return summary


def summarize(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """
    Aggregate the records of every set under the names of TOFU: `{set}_prob`, `{set}_rougeL_recall`,
    `{set}_truth_ratio`, and `model_utility` if all nine values that it needs are there.

    Two rules depend on the name of the set. Probabilities of `real_authors` and `world_facts` are
    [`multiple_choice_probability`], those of other sets [`answer_probability`]. The truth ratio of `forget` is
    [`forget_truth_ratio`], that of other sets [`utility_truth_ratio`]. An aggregate is left out if a record of its set
    lacks a field that it needs. `{set}_rougeL_recall_unicode` then replaces `{set}_rougeL_recall`, but is no part of
    `model_utility`.

    Args:
        records (`list[dict]`):
            Records from [`~wagle_trl.evaluation.tofu.evaluate_rows`] or from the benchmark's authors, of any number of
            sets. The fields `set`, `avg_gt_loss`, `avg_paraphrased_loss`, `average_perturb_loss`, `rougeL_recall` and
            `rougeL_recall_unicode` are read.

    Returns:
        `dict[str, float]`: Aggregates by name.
    """
    summary = {}
    for name, members in records_by_set(records).items():
        summary |= _set_summary(members, name)
    if summary.keys() >= set(UTILITY_KEYS):
        summary["model_utility"] = model_utility([summary[key] for key in UTILITY_KEYS])
    return summary
