"""The view of a batch that an objective gets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses.fused_head import TokenPredictions
from ..losses.lm_head import Head


@dataclass
class Stream:
    """
    Rows of one kind in a batch.

    Args:
        log_probs (`torch.Tensor` of shape `(rows, length)`): Log-probabilities of the answer tokens, in nats; 0 elsewhere.
        answer (`torch.Tensor` of shape `(rows, length)`): Whether a token is one of the answer.
        num_rows, num_tokens (`torch.Tensor`):
            Numbers of rows and answer tokens to divide by: those of the whole optimizer step, over all processes.
        labels (`torch.Tensor` of shape `(rows, length)`): The answer tokens; -100 elsewhere.
        reference_log_probs (`torch.Tensor` of shape `(rows, length)`, *optional*):
            `log_probs` under the model before unlearning, where the objective declares it.
        hidden (`torch.Tensor` of shape `(answer tokens, width)`, *optional*):
            Last hidden states that predict the answer tokens, row by row, where the objective declares `distributions`.
        head ([`~losses.lm_head.LinearHead`] or [`~losses.lm_head.OwnHead`], *optional*): What makes logits of them.
        reference_hidden, reference_head (as `hidden` and `head`, *optional*):
            The same of the model before unlearning, where it is declared.
    """

    log_probs: Tensor
    answer: Tensor
    num_rows: Tensor
    num_tokens: Tensor
    labels: Tensor
    reference_log_probs: Tensor | None = None
    hidden: Tensor | None = None
    head: Head | None = None
    reference_hidden: Tensor | None = None
    reference_head: Head | None = None

    @property
    def states(self) -> tuple[Head, Tensor]:
        """LM head and hidden states, where the objective declares them."""
        assert self.head is not None and self.hidden is not None
        return self.head, self.hidden

    @property
    def reference_states(self) -> tuple[Head, Tensor]:
        """LM head and hidden states of the reference, where the objective declares them."""
        assert self.reference_head is not None and self.reference_hidden is not None
        return self.reference_head, self.reference_hidden

    @property
    def targets(self) -> Tensor:
        """The answer tokens, of shape `(answer tokens,)`, row by row."""
        return self.labels[self.answer]

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
        labels: Tensor,
        counts: Tensor | None = None,
    ) -> "UnlearningBatch":
        """
        Cut a batch into its streams.

        Args:
            names (`list[str]`): Kinds of the rows, in their order.
            predicted ([`~losses.fused_head.TokenPredictions`]): Values of the whole batch.
            labels (`torch.Tensor` of shape `(rows, length + 1)`): Labels of the whole batch, before they are shifted.
            counts (`torch.Tensor`, *optional*): Counts to divide by, as [`count`] gives them; by default this batch's.
        """
        per_token = predicted.log_probs, predicted.label_mask, labels[:, 1:]
        log_probs, answers, targets = (values.chunk(len(names)) for values in per_token)
        num_rows, num_tokens = (cls.count(predicted.label_mask, len(names)) if counts is None else counts).view(2, -1)
        return cls(dict(zip(names, map(Stream, log_probs, answers, num_rows, num_tokens, targets), strict=True)))

    def add_reference(self, kinds: Sequence[str], log_probs: Tensor) -> None:
        """Add reference log-probabilities of the answers of these kinds of rows, of shape `(answer tokens,)`, row by row."""
        for stream, values in self._per_answer(kinds, log_probs):
            zeros = torch.zeros_like(stream.log_probs)
            stream.reference_log_probs = zeros.masked_scatter(stream.answer, values.to(zeros))

    def add_states(self, states: Tensor, head: Head) -> None:
        """Add the last hidden states of the whole batch, of shape `(rows, length + 1, width)`."""
        for stream, values in zip(self.streams.values(), states[:, :-1].chunk(len(self.streams))):
            stream.hidden, stream.head = values[stream.answer], head

    def add_reference_states(self, kinds: Sequence[str], states: Tensor, head: Head) -> None:
        """Add those of the reference, of the answers of these kinds of rows, of shape `(answer tokens, width)`, row by row."""
        for stream, values in self._per_answer(kinds, states):
            stream.reference_hidden, stream.reference_head = values, head

    def _per_answer(self, kinds: Sequence[str], values: Tensor) -> Iterator[tuple[Stream, Tensor]]:
        """Split values of answer tokens by the kinds of their rows."""
        chosen = [self.streams[kind] for kind in kinds]
        return zip(chosen, values.split([int(stream.answer.sum()) for stream in chosen]), strict=True)

    @staticmethod
    def count(answer: Tensor, num_streams: int) -> Tensor:
        """Count the rows of each stream, then their answer tokens."""
        parts = answer.chunk(num_streams)
        rows = [torch.tensor(len(part), device=answer.device) for part in parts]
        return torch.stack([*rows, *(part.sum() for part in parts)])
