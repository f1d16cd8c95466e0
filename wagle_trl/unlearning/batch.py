"""What an objective sees of a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Stream:
    """
    The rows of one kind in a batch.

    Args:
        log_probs (`torch.Tensor` of shape `(rows, length)`): Of the answer tokens, in nats; zero elsewhere.
        answer (`torch.Tensor` of shape `(rows, length)`): Where the answer tokens are.
        num_rows, num_tokens (`torch.Tensor`):
            Rows and answer tokens to divide by: of the whole optimizer step, over all processes.
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
    The rows to forget and those to retain.

    Args:
        forget, retain ([`Stream`]): As many rows of each.
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
            log_probs, answer (`torch.Tensor` of shape `(rows, length)`): The forget rows first.
            reference (`torch.Tensor` of shape `(tokens,)`, *optional*): Of the forget answers, row by row.
            counts (`torch.Tensor`, *optional*): What to divide by, as [`count`] gives it; by default of this batch.
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
        """Numbers of rows of each stream, then of their answer tokens."""
        rows = [torch.tensor(len(part), device=answer.device) for part in answer.chunk(2)]
        return torch.stack([*rows, *(part.sum() for part in answer.chunk(2))])
