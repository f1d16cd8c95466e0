"""The view of a batch that an objective gets."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses.fused_head import TokenPredictions


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

    @property
    def sequence_log_probs(self) -> Tensor:
        """Log-probability of each answer, of shape `(rows,)`."""
        return self.log_probs.sum(1)

    @property
    def log_ratios(self) -> Tensor:
        """`sequence_log_probs` less those of the reference."""
        assert self.reference_log_probs is not None  # the objective declares them
        return (self.log_probs - self.reference_log_probs).sum(1)


@dataclass
class UnlearningBatch:
    """
    Rows of every kind that the objective declares.

    Args:
        streams (`dict[str, Stream]`):
            By their kind: `forget`, `alternate` (forget rows with another answer), `retain`, `retain_refusal` (retain rows with
            a refusal). There are as many rows of each.
    """

    streams: dict[str, Stream]

    @property
    def forget(self) -> Stream:
        return self.streams["forget"]

    @property
    def alternate(self) -> Stream:
        return self.streams["alternate"]

    @property
    def retain(self) -> Stream:
        return self.streams["retain"]

    @property
    def retain_refusal(self) -> Stream:
        return self.streams["retain_refusal"]

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        predicted: TokenPredictions,
        counts: Tensor | None = None,
        reference: Tensor | None = None,
        compared: Sequence[str] = (),
    ) -> "UnlearningBatch":
        """
        Cut a batch into its streams.

        Args:
            names (`list[str]`): Kinds of the rows, in their order.
            predicted ([`~losses.fused_head.TokenPredictions`]): Values of the whole batch.
            counts (`torch.Tensor`, *optional*): Counts to divide by, as [`count`] gives them; by default this batch's.
            reference (`torch.Tensor` of shape `(tokens,)`, *optional*):
                Reference log-probabilities of the answers of the streams `compared`, row by row.
            compared (`list[str]`, *optional*): Kinds that have a reference, in their order.
        """
        answers, log_probs = (values.chunk(len(names)) for values in (predicted.label_mask, predicted.log_probs))
        num_rows, num_tokens = (cls.count(predicted.label_mask, len(names)) if counts is None else counts).view(2, -1)
        streams = dict(zip(names, map(Stream, log_probs, answers, num_rows, num_tokens), strict=True))
        if reference is not None:
            sizes = [int(streams[name].answer.sum()) for name in compared]
            for name, values in zip(compared, reference.to(predicted.log_probs).split(sizes)):
                zeros = torch.zeros_like(streams[name].log_probs)
                streams[name].reference_log_probs = zeros.masked_scatter(streams[name].answer, values)
        return cls(streams)

    @staticmethod
    def count(answer: Tensor, num_streams: int) -> Tensor:
        """Count the rows of each stream, then their answer tokens."""
        parts = answer.chunk(num_streams)
        rows = [torch.tensor(len(part), device=answer.device) for part in parts]
        return torch.stack([*rows, *(part.sum() for part in parts)])
