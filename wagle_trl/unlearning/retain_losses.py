"""The losses on the rows to keep, one of which is the retain term of every objective."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..losses.distributions import kl_retain_loss
from ..losses.objectives import cross_entropy, preference_loss
from .batch import UnlearningBatch
from .config import UnlearningConfig


@dataclass(frozen=True)
class RetainLoss:
    """
    A retain term.

    Args:
        loss (callable): From a batch and the options to a scalar.
        rows (`tuple[str, ...]`, *optional*, defaults to `("retain",)`): Kinds of rows that it needs.
        reference (`"hidden_states"`, *optional*): What it compares the retain rows with.
    """

    loss: Callable[[UnlearningBatch, UnlearningConfig], Tensor]
    rows: tuple[str, ...] = ("retain",)
    reference: Literal["hidden_states"] | None = None


def _nll(batch: UnlearningBatch, args: UnlearningConfig) -> Tensor:
    return cross_entropy(batch.retain.log_probs, batch.retain.num_tokens)


def _kl(batch: UnlearningBatch, args: UnlearningConfig) -> Tensor:
    return kl_retain_loss(*batch.retain.states, *batch.retain.reference_states, batch.retain.num_tokens)


def _answer_preservation(batch: UnlearningBatch, args: UnlearningConfig) -> Tensor:
    """Prefer the answers of the retain rows to refusals (arXiv 2410.08109)."""
    retain, refusal = batch.retain, batch.retain_refusal
    margins = retain.sequence_log_probs - refusal.sequence_log_probs
    return preference_loss(margins, args.preservation_beta, retain.num_rows)


RETAIN_LOSSES = {
    "nll": RetainLoss(_nll),
    "kl": RetainLoss(_kl, reference="hidden_states"),
    "answer_preservation": RetainLoss(_answer_preservation, ("retain", "retain_refusal")),
}
