"""Loss of each row of a batch, from logits or through TRL's fused LM head."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .fused_head import answer_log_probs

Batch = dict[str, Tensor]
SampleLosses = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


def sample_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """
    Compute the token-mean cross-entropy of each sample's answer, and the number of answer tokens.

    Args:
        model (`torch.nn.Module`): Causal language model that returns `logits` of shape `(batch, length, vocab)`.
        batch (`dict`): `input_ids` and `labels` of shape `(batch, length)`, and other inputs of the model.
    """
    labels = batch["labels"][:, 1:]
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1].float()
    token_losses = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return per_sample_mean(token_losses, labels != -100)


def per_sample_mean(token_losses: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean of `token_losses` over the `answer` tokens of each row, and the number of these tokens."""
    num_tokens = answer.sum(1)
    return (token_losses * answer).sum(1) / num_tokens, num_tokens


def single_rows(batch: Batch) -> Iterator[Batch]:
    """Yield the rows of a batch one at a time, without padding."""
    for i in range(len(batch["input_ids"])):
        row = {key: value[i : i + 1] for key, value in batch.items()}
        if "attention_mask" in row:
            kept = row["attention_mask"][0].bool()
            row = {key: value[:, kept] if value.shape[1:] == kept.shape else value for key, value in row.items()}
        yield row


def fused_sample_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Compute [`~losses.per_sample.sample_losses`] through TRL's fused LM head, which never stores the logits."""
    outputs = answer_log_probs(model, batch)
    return per_sample_mean(-outputs.log_probs, outputs.label_mask)


def pair_rows(batch: Batch) -> Batch:
    """Convert a batch of a reward model (chosen rows, then rejected rows) to a batch of pairs, which can be split."""
    ids, mask = (torch.stack(batch[name].chunk(2), 1) for name in ("input_ids", "attention_mask"))
    return {"input_ids": ids, "pair_mask": mask}


def pair_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """
    Compute the loss of each pair of a reward model, `-log sigmoid(chosen - rejected)`, and its weight, 1.

    Args:
        model (`torch.nn.Module`): Sequence classifier with one label.
        batch (`dict`): Batch from [`pair_rows`]: `input_ids` and `pair_mask` of shape `(pairs, 2, length)`.
    """
    ids, mask = batch["input_ids"].flatten(0, 1), batch["pair_mask"].flatten(0, 1)
    chosen, rejected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.view(-1, 2).unbind(1)
    return -nn.functional.logsigmoid(chosen.float() - rejected.float()), torch.ones(len(chosen), device=ids.device)
