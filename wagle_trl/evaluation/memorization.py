"""Memorization metrics, computed from numbers alone: exact memorization and extraction strength.

Both depend on whether each answer token is the most likely token after the true tokens before it. The end-of-sequence
token counts as a token of the answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .metrics import finite, records_by_set

MEMORIZATION_METRICS = ("exact_memorization", "extraction_strength")


def _flags(correct: ArrayLike) -> np.ndarray:
    flags = np.asarray(correct, dtype=bool)
    if flags.size == 0:
        raise ValueError("`correct` is empty: an answer has at least one token.")
    return flags


def exact_memorization(correct: ArrayLike) -> float:
    r"""
    Exact memorization: share of the answer's tokens that are predicted correctly,
    \\( \frac{1}{n} \sum_t 1[\operatorname{argmax}_v p(v \mid x, y_{<t}) = y_t] \\).

    From Tirumala et al. (https://huggingface.co/papers/2205.10770), for unlearning as in OpenUnlearning
    (https://huggingface.co/papers/2506.12618).

    Args:
        correct (array of shape `(num_tokens,)`):
            For each token of the answer, whether it is the most likely one.

    Returns:
        `float`: Share, from `0.0` to `1.0`.
    """
    return float(_flags(correct).mean())


def extraction_strength(correct: ArrayLike) -> float:
    r"""
    Extraction strength: \\( 1 - k / n \\), where \\( k \\) is the smallest number of the answer's \\( n \\) tokens that
    must be given so that greedy decoding produces all the remaining ones.

    From Carlini et al. (https://huggingface.co/papers/2012.07805), for unlearning as in
    https://huggingface.co/papers/2406.09179. An answer whose last token is wrong gets `0.0`; OpenUnlearning
    (https://huggingface.co/papers/2506.12618) gives it `1 / n`.

    Args:
        correct (array of shape `(num_tokens,)`):
            For each token of the answer, whether it is the most likely one. Greedy decoding produces the answer's
            tokens up to the first that is not.

    Returns:
        `float`: Strength. It is `1.0` if the model produces the whole answer from the prompt alone.
    """
    flags = _flags(correct)
    wrong = np.flatnonzero(~flags)
    given = int(wrong[-1]) + 1 if wrong.size else 0
    return 1 - given / flags.size


def memorization_summary(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """
    Average `{set}_exact_memorization` and `{set}_extraction_strength` over the records of every set. A mean is left out
    if a record lacks the field.

    Args:
        records (`list[dict]`):
            Records from [`~wagle_trl.evaluation.tofu.evaluate_rows`], of any number of sets.

    Returns:
        `dict[str, float]`: Aggregates by name.
    """
    summary = {}
    for name, members in records_by_set(records).items():
        for metric in MEMORIZATION_METRICS:
            if all(metric in record for record in members):
                values = finite([record[metric] for record in members], metric)
                summary[f"{name}_{metric}"] = float(values.mean())
    return summary
