"""Attacks on an unlearned model, which show whether what it forgot is gone or only hidden.

Relearning trains on a few of the forgotten rows, quantization rounds the weights, and a paraphrase asks for the same
answer in other words. No attack changes the model: it returns an attacked copy or other rows, which are evaluated like
any model and any rows.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ..data.formats import filled_columns, with_messages
from ..data.tokenization import DEFAULT, IGNORED, RowOptions, padding_token_id, tokenize_row
from .inference import Tokenized, answer_losses, model_inputs, pad
from .metrics import answer_probability

Bits = Literal[8, 4]
# Bits -> number of weights that share a scale: a whole output row as in LLM.int8(), or a block as in NF4
_GROUP_SIZES: dict[Bits, int | None] = {8: None, 4: 64}


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model, with the forward of its class: what a trainer put in its place would run the original."""
    copied = copy.deepcopy(model)
    copied.__dict__.pop("forward", None)
    return copied


# Relearning


@dataclass(frozen=True)
class RelearnCurve:
    """
    Result of [`relearn`].

    Attributes:
        steps (`list[int]`): Number of optimizer steps before each measurement, from `0` to the last step.
        probabilities (`list[float]`): Mean answer probability of the rows in `rest` at each measurement, from `0.0` to
            `1.0`.
        trained (`list[int]`): Indices of the rows that were trained on, ascending.
        rest (`list[int]`): Indices of the other rows, which are measured, ascending.
        model ([`~transformers.PreTrainedModel`]): Attacked copy after the last step, in fp32 and evaluation mode.
    """

    steps: list[int]
    probabilities: list[float]
    trained: list[int]
    rest: list[int]
    model: PreTrainedModel


def relearn_split(num_rows: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """
    Choose the rows that [`relearn`] trains on. Return their indices and those of the rest, both ascending and not empty.

    Args:
        num_rows (`int`): Number of forget rows, at least 2.
        share (`float`): Share of them to train on, between `0.0` and `1.0`.
        seed (`int`): Seed of the choice.
    """
    if num_rows < 2:
        raise ValueError(
            f"Relearning trains on some forget rows and measures the others; it needs at least 2, not {num_rows}."
        )
    if not 0 < share < 1:
        raise ValueError(f"The share of forget rows to relearn is {share}; it must lie between 0 and 1.")
    count = min(max(1, round(share * num_rows)), num_rows - 1)
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[:count]), sorted(order[count:])


def relearn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Mapping[str, Any]],
    *,
    share: float = 0.2,
    steps: int = 20,
    learning_rate: float = 1e-4,
    batch_size: int = 8,
    seed: int = 0,
    every: int = 5,
    options: RowOptions = DEFAULT,
    progress: bool = True,
) -> RelearnCurve:
    """
    Fine-tune a copy of the model on a few forget rows, and measure the answers to the others.

    This is the attack of https://huggingface.co/papers/2406.13356 with a part of the forget rows. If training on some
    rows brings others back, these were hidden rather than gone. Rows about one subject teach something about each other
    even to a model that never saw any of them, so compare the curve with that of the retrained model.

    All weights are trained by AdamW without weight decay at a constant learning rate, on the answers alone and without
    dropout. The copy is fp32 for any model: in bf16 small steps round to nothing, and the attack would look weaker than
    it is. Besides the model, it takes 16 bytes per weight for weights, gradients and moments.

    Args:
        model ([`~transformers.PreTrainedModel`]): Unlearned model; nothing in it is changed.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        rows (iterable of `dict`): Forget rows, in any form that [`~wagle_trl.data.tokenization.tokenize_row`] takes; at least 2.
        share (`float`, *optional*, defaults to `0.2`): Share of them to train on, at least one row and not all.
        steps (`int`, *optional*, defaults to `20`): Optimizer steps.
        learning_rate (`float`, *optional*, defaults to `1e-4`): Learning rate.
        batch_size (`int`, *optional*, defaults to `8`): Rows in a step, and in a forward pass of a measurement.
        seed (`int`, *optional*, defaults to `0`): Seed of which rows are trained on, and of their order.
        every (`int`, *optional*, defaults to `5`): Steps from one measurement to the next.
        options ([`~wagle_trl.data.tokenization.RowOptions`], *optional*): What of the rows is scored.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        [`RelearnCurve`]: The curve, the two parts of the rows and the attacked model.
    """
    for name, value in {"steps": steps, "batch_size": batch_size, "every": every}.items():
        if value < 1:
            raise ValueError(f"`{name}` of relearning is {value}; it must be at least 1.")
    tokenized = [tokenize_row(row, tokenizer, options) for row in rows]
    trained, rest = relearn_split(len(tokenized), share, seed)
    attacked, padding = _trainable_copy(model), padding_token_id(tokenizer)
    curve = RelearnCurve([], [], trained, rest, attacked)

    def measure(step: int) -> None:
        try:
            losses, _ = answer_losses(attacked, [tokenized[i] for i in rest], batch_size, padding)
        except ValueError as error:
            raise ValueError(f"Relearning with learning rate {learning_rate}, step {step}: {error}") from error
        curve.steps.append(step)
        curve.probabilities.append(float(answer_probability(losses).mean()))

    measure(0)
    optimizer = torch.optim.AdamW(attacked.parameters(), lr=learning_rate, weight_decay=0.0)
    order = _training_order(trained, steps, batch_size, seed)
    for step, indices in enumerate(tqdm(order, desc="Relearning", disable=not progress), 1):
        _answer_loss(attacked, [tokenized[i] for i in indices], padding).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % every == 0 or step == steps:
            measure(step)
    return curve


def _trainable_copy(model: PreTrainedModel) -> PreTrainedModel:
    attacked = _copy(model).float().eval().requires_grad_(True)
    if "flash" in (attacked.config._attn_implementation or ""):  # its kernels support half precision only
        attacked.set_attn_implementation("sdpa")
    return attacked


def _training_order(trained: Sequence[int], steps: int, batch_size: int, seed: int) -> list[list[int]]:
    """Row indices of every step: permutations of the rows one after another, split into batches of equal size."""
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(trained))
    epochs = math.ceil(steps * batch_size / len(trained))
    order = [trained[i] for _ in range(epochs) for i in torch.randperm(len(trained), generator=generator).tolist()]
    return [order[start : start + batch_size] for start in range(0, steps * batch_size, batch_size)]


def _answer_loss(model: PreTrainedModel, batch: Sequence[Tokenized], pad_token_id: int) -> Tensor:
    inputs = model_inputs(model, [row["input_ids"] for row in batch], pad_token_id, "right")
    labels = pad([row["labels"] for row in batch], IGNORED, "right").to(model.device)
    return model(**inputs, labels=labels, use_cache=False).loss


# Quantization


def round_to_nearest(weight: Tensor, bits: int, group_size: int | None = None) -> Tensor:
    r"""
    Quantize weights by symmetric round-to-nearest, and dequantize them: \\( s \cdot \text{round}(w / s) \\) with the
    step \\( s = \max |w| / (2^{\text{bits} - 1} - 1) \\) of the weight's group.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`): Weights.
        bits (`int`): Bits per level: 8 gives the levels -127 to 127, 4 gives -7 to 7.
        group_size (`int`, *optional*): Number of neighbors in a row that share a step; the last group of a row may be
            smaller. By default the whole row is one group.

    Returns:
        `torch.Tensor` of the shape and dtype of `weight`, at most half a step away from it (besides the rounding of its
        dtype). It is computed in fp32, and ties go to the even level.
    """
    rows, columns = weight.shape
    size = min(group_size or columns, columns)
    groups = nn.functional.pad(weight.float(), (0, -columns % size)).view(rows, -1, size)
    step = groups.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    step = step.clamp_min(torch.finfo(step.dtype).tiny)  # a group of zeros stays zero instead of 0 / 0
    return (step * torch.round(groups / step)).view(rows, -1)[:, :columns].to(weight.dtype)


def has_bitsandbytes(model: PreTrainedModel) -> bool:
    """Whether [`quantized`] uses bitsandbytes: the model is on a GPU, and the package is installed."""
    return model.device.type == "cuda" and find_spec("bitsandbytes") is not None


def round_with_bitsandbytes(weight: Tensor, bits: Bits) -> Tensor:
    """
    Quantize weights with bitsandbytes, and dequantize them. 8 bits are those of the rows of LLM.int8()
    (https://huggingface.co/papers/2208.07339), 4 bits are NF4 in blocks of 64
    (https://huggingface.co/papers/2305.14314).

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`): Weights.
        bits (`int`): 8 or 4.

    Returns:
        `torch.Tensor` of the shape and dtype of `weight`.
    """
    from bitsandbytes import functional  # pyright: ignore[reportMissingImports]  # an optional dependency

    if bits == 4:
        packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=_GROUP_SIZES[4], quant_type="nf4")
        return functional.dequantize_4bit(packed, state)
    levels, largest, _ = functional.int8_vectorwise_quant(weight.half().contiguous())
    return (levels * (largest.float() / 127)[:, None]).to(weight.dtype)


def quantized(model: PreTrainedModel, bits: Bits) -> PreTrainedModel:
    """
    Copy the model, and round the weights of the copy's linear layers to 8 or 4 bits.

    Unlearning moves weights so little that rounding can bring them back to where they were: "Catastrophic Failure of LLM
    Unlearning via Quantization", https://huggingface.co/papers/2410.16454.

    Weights are rounded by [`round_with_bitsandbytes`] if [`has_bitsandbytes`], and else by [`round_to_nearest`]. They
    keep the model's dtype, so that no quantized kernel is needed and only the rounding is measured. In 8 bits an output
    row shares one step, in 4 bits a block of 64 weights does. Embeddings, norms, biases and the LM head stay unchanged,
    as in bitsandbytes.

    Args:
        model ([`~transformers.PreTrainedModel`]): Unlearned model; nothing in it is changed.
        bits (`int`): 8 or 4.

    Returns:
        [`~transformers.PreTrainedModel`]: The copy, in the dtype and mode of the model.
    """
    if bits not in _GROUP_SIZES:
        raise ValueError(f"Cannot quantize to {bits} bits; expected {' or '.join(map(str, _GROUP_SIZES))}.")
    attacked = _copy(model)
    head = attacked.get_output_embeddings()
    layers = [m for m in attacked.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layers besides the LM head: nothing can be quantized.")
    with torch.no_grad():
        for layer in layers:
            weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight  # GPT-2 stores the transpose
            if has_bitsandbytes(model):
                weight.copy_(round_with_bitsandbytes(weight, bits))
            else:
                weight.copy_(round_to_nearest(weight, bits, _GROUP_SIZES[bits]))
    return attacked


# Paraphrases


def paraphrased(rows: Iterable[Mapping[str, Any]], set_name: str) -> list[dict[str, Any]]:
    """
    Replace the question of every row by its `paraphrased_question`: the question itself, the prompt (or its last
    message), or the message before the answer.

    Rows without a paraphrase are left out.

    Args:
        rows (iterable of `dict`): Rows with `question`/`answer`, `prompt`/`completion` or `messages`. TOFU's perturbed
            forget and retain rows have `paraphrased_question`.
        set_name (`str`): Name of the set, for error messages.

    Returns:
        `list[dict]`: At least one row, in the order of `rows`, with all other columns unchanged.
    """
    kept = [_with_paraphrased_question(row, set_name) for row in rows if row.get("paraphrased_question")]
    if not kept:
        raise ValueError(
            f"No row of the set '{set_name}' has a `paraphrased_question`: add that column, or leave out this attack."
        )
    return kept


def _with_paraphrased_question(row: Mapping[str, Any], set_name: str) -> dict[str, Any]:
    question = row["paraphrased_question"]
    match filled_columns(row):
        case ("question", "answer"):
            return {**row, "question": question}
        case ("prompt", "completion"):
            prompt = row["prompt"]
            return {**row, "prompt": question if isinstance(prompt, str) else _replace_last(prompt, question)}
        case ("messages",) | ("conversations",):
            row = with_messages(row)
            return {**row, "messages": [*_replace_last(row["messages"][:-1], question), row["messages"][-1]]}
    raise ValueError(
        f"A row of the set '{set_name}' has a `paraphrased_question` but no question that it can replace; expected "
        "question/answer, prompt/completion or messages."
    )


def _replace_last(messages: Sequence[Mapping[str, Any]], content: str) -> list[Mapping[str, Any]]:
    if not messages:
        raise ValueError("A conversation with a `paraphrased_question` has no message before its answer.")
    return [*messages[:-1], {**messages[-1], "content": content}]
