"""The view of a batch that an objective gets."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Stream:
    """
    Rows of one kind in a batch.

    Args:
        log_probs (`torch.Tensor` of shape `(rows, length)`): Log-probabilities of the answer tokens, in nats; 0 elsewhere.
        answer (`torch.Tensor` of shape `(rows, length)`): Whether a token is one of the answer.
        num_rows, num_tokens (`torch.Tensor`):
            Numbers of rows and answer tokens to divide by: those of the whole optimizer step, over all processes.
        reference_log_probs (`torch.Tensor` of shape `(rows, length)`, *optional*):
            `log_probs` under the model before unlearning, where the objective declares it.
    """

    log_probs: Tensor
    answer: Tensor
    num_rows: Tensor
    num_tokens: Tensor
    reference_log_probs: Tensor | None = None


@dataclass
class UnlearningBatch:
    """
    Rows to forget and rows to retain.

    Args:
        forget, retain ([`Stream`]): The same number of rows of each.
    """

    forget: Stream
    retain: Stream

    @classmethod
    def of(
        cls, log_probs: Tensor, answer: Tensor, reference: Tensor | None = None, counts: Tensor | None = None
    ) -> "UnlearningBatch":
        """
        Cut a batch into its streams.

        Args:
            log_probs, answer (`torch.Tensor` of shape `(rows, length)`): Values of the batch, forget rows first.
            reference (`torch.Tensor` of shape `(tokens,)`, *optional*): Reference log-probabilities of the forget answers, row by row.
            counts (`torch.Tensor`, *optional*): Counts to divide by, as [`count`] gives them; by default this batch's.
        """
        num_rows, num_tokens = (cls.count(answer) if counts is None else counts).view(2, 2)
        parts = zip(log_probs.chunk(2), answer.chunk(2), num_rows, num_tokens)
        forget, retain = (Stream(*part) for part in parts)
        if reference is not None:
            values = reference.to(log_probs.device, log_probs.dtype)
            forget.reference_log_probs = torch.zeros_like(forget.log_probs).masked_scatter(forget.answer, values)
        return cls(forget, retain)

    @staticmethod
    def count(answer: Tensor) -> Tensor:
        """Count the rows of each stream, then their answer tokens."""
        rows = [torch.tensor(len(part), device=answer.device) for part in answer.chunk(2)]
        return torch.stack([*rows, *(part.sum() for part in answer.chunk(2))])
