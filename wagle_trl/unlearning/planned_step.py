"""What an objective adds to a plan of memory: its loss, run on rows without data, and what it holds of the reference."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ..losses.fused_head import answer_log_probs, base_of
from ..losses.lm_head import LinearHead, OwnHead, SplitModel
from ..losses.per_sample import Batch, SampleLosses
from ..memory.simulation import kernels_of_gpu, predictions_on_gpu
from ..planning.planner import Reference
from .batch import Stream, UnlearningBatch
from .config import UnlearningConfig
from .retain_losses import RETAIN_LOSSES


def planned_losses(
    objective,
    args: UnlearningConfig,
    on_gpu: bool = True,
    split: SplitModel | None = None,
    answer_length: int | None = None,
) -> SampleLosses:
    """
    Make the losses of a training step, for [`~planning.planner.Planner`].

    Args:
        objective (subclass of [`~unlearning.base.UnlearningTrainer`]): Trainer class.
        args ([`UnlearningConfig`]): Its options.
        on_gpu (`bool`, *optional*, defaults to `True`): Whether kernels of a GPU will compute the losses.
        split ([`~losses.lm_head.SplitModel`], *optional*): The model, if its head may be another than most.
        answer_length (`int`, *optional*): Longest answer, in tokens; by default the whole row.
    """
    kinds, trainer = objective.rows_of(args), SimpleNamespace(args=args)
    needs_states = objective.distributions or states_of(objective, args)

    def losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        log_probs, states = (predictions_on_gpu if on_gpu else _predictions)(model, batch)
        if split is None or split.is_linear:
            head = LinearHead.of(model) if needs_states else None
        else:
            head = OwnHead(base_of(model), split.backbone)
        parts = (log_probs, batch["labels"][:, 1:], states[:, :-1])
        streams = {}
        for kind, log_probs, labels, states in zip(kinds, *(part.chunk(len(kinds)) for part in parts)):
            count = torch.ones_like(labels).sum()
            hidden = states[:, :answer_length].flatten(0, 1) if needs_states else None
            streams[kind] = _Answers(
                log_probs,
                torch.ones_like(labels, dtype=torch.bool),
                num_rows=count,
                num_tokens=count,
                labels=labels,
                reference_log_probs=torch.zeros_like(log_probs) if objective.reference == "log_probs" else None,
                hidden=hidden,
                head=head,
                answer_length=answer_length,
                # The plan counts them as a component of their own
                reference_hidden=None if hidden is None else hidden.detach(),
                reference_head=head,
            )
        rows = UnlearningBatch(streams)
        loss = objective.forget_loss(trainer, rows)
        if "retain" in streams:
            loss = loss + RETAIN_LOSSES[args.retain_loss].loss(rows, args)
        return loss, count

    if not on_gpu:
        return losses

    def losses_of_gpu(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        with kernels_of_gpu():
            return losses(model, batch)

    return losses_of_gpu


def states_of(objective, args: UnlearningConfig) -> tuple[str, ...]:
    """List the kinds of rows whose last hidden states before unlearning a loss compares with, in the order of a batch."""
    compared = set(objective.rows if objective.reference == "hidden_states" else ())
    compared |= {"retain"} if RETAIN_LOSSES[args.retain_loss].reference else set()
    return tuple(kind for kind in objective.rows_of(args) if kind in compared)


def planned_reference(
    objective, args: UnlearningConfig, swaps: bool, answer_length: int | None = None
) -> Reference | None:
    """
    Describe what training holds of the reference.

    Args:
        objective (`UnlearningTrainer`): As for [`planned_losses`].
        args, answer_length: As for [`planned_losses`].
        swaps (`bool`): Whether the original values of selected weights give its hidden states.
    """
    kinds = states_of(objective, args)
    return Reference(len(kinds), swaps, answer_length) if kinds else None


@dataclass
class _Answers(Stream):
    """Rows whose first `answer_length` tokens are the answers: where tensors hold no data, their own are not known."""

    answer_length: int | None = None

    @property
    def targets(self) -> Tensor:
        return self.labels[:, : self.answer_length].flatten()


def _predictions(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Compute log-probabilities and last hidden states, as [`~memory.simulation.predictions_on_gpu`], on a CPU."""
    kept: list[Tensor] = []
    decoder = model.get_decoder()  # pyright: ignore[reportCallIssue]
    with decoder.register_forward_hook(lambda module, args, output: kept.append(output.last_hidden_state)):
        outputs = answer_log_probs(model, batch)
    return outputs.log_probs, kept[-1]
