"""TOFU-style evaluation of a model: one record per row.

A record has the keys of the benchmark authors' own logs, so [`~wagle_trl.evaluation.metrics.summarize`] works for both.
Answers are tokenized exactly as in training, and the prompt for generation is the part of the same tokens before the
answer. So the model is evaluated on the sequences that it was trained on.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.rows import read_jsonl
from ..data.tokenization import RowOptions, padding_token_id, tokenize_row
from ..files.atomic import atomic_path
from ..files.schemas import Record
from ..text import printable
from .inference import AnswerLikelihood, answer_likelihoods, batches, generate_answers
from .membership import lowest_mean, zlib_bytes
from .memorization import exact_memorization, extraction_strength
from .metrics import FORGET, truth_ratio
from .rouge import rouge_l_recall
from .samples import Row, Sample, Secret, prepare_rows
from .secrets import digits_right, draw_candidates, exact_string, exposure

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class EvalOptions(RowOptions):
    """
    Options of an evaluation.

    Args:
        batch_size (`int`, *optional*, defaults to `16`): Rows per forward pass or generation.
        max_new_tokens (`int`, *optional*, defaults to `200`): Longest generated answer, in tokens.
        generate (`bool`, *optional*, defaults to `True`): Whether to generate answers for ROUGE-L.
        mia_k (`float`, *optional*, defaults to `0.4`): Share of an answer's tokens that Min-K% and Min-K%++ use. The
            default is that of MUSE and OpenUnlearning; the paper of Min-K% takes 0.2.
        exposure_candidates (`int`, *optional*, defaults to `256`): Random secrets that the secret of a forget row is
            ranked among, each in a forward pass of the row. `0` leaves out the exposure.
    """

    batch_size: int = field(default=16, metadata={"help": "Rows per forward pass or generation."})
    max_new_tokens: int = field(default=200, metadata={"help": "Longest generated answer, in tokens."})
    generate: bool = field(default=True, metadata={"help": "Whether to generate answers for ROUGE-L."})
    mia_k: float = field(
        default=0.4,
        metadata={
            "help": "Share of an answer's tokens that Min-K%% and Min-K%%++ use. The default is that of MUSE and "
            "OpenUnlearning; the paper of Min-K%% takes 0.2."
        },
    )
    exposure_candidates: int = field(
        default=256,
        metadata={
            "help": "Random secrets of the same `secret_format` that the `secret` of a forget row is ranked among, each in a "
            "forward pass of the row. 0 leaves out the exposure."
        },
    )

    def __post_init__(self):
        for name in ("batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if self.exposure_candidates < 0:
            raise ValueError(f"`exposure_candidates` is {self.exposure_candidates}; it must be 0 or more.")
        if not 0 < self.mia_k <= 1:
            raise ValueError(f"`mia_k` is {self.mia_k}; it is a share of tokens, above 0 and up to 1.")


def _loss_fields(likelihoods: Sequence[AnswerLikelihood], has_paraphrase: bool) -> dict[str, Any]:
    """Fields of TOFU's own logs, from the likelihoods of a sample's answers."""
    (loss, count), *perturbed = ((answer.loss, len(answer.log_probs)) for answer in likelihoods)
    fields = {"avg_gt_loss": loss, "gt_loss": loss * count, "num_token_gt": count}
    if not perturbed:
        return fields
    # Real authors and world facts have no paraphrase: TOFU's logs repeat the answer
    loss, count = perturbed.pop(0) if has_paraphrase else (loss, count)
    fields |= {"avg_paraphrased_loss": loss, "paraphrased_loss": loss * count, "num_token_paraphrased": count}
    losses, counts = zip(*perturbed, strict=True)
    fields |= {"average_perturb_loss": list(losses), "num_token_perturb": list(counts)}
    return fields | {"perturb_loss": [a * b for a, b in perturbed], "truth_ratio": truth_ratio(loss, losses)}


def _memorization_fields(likelihood: AnswerLikelihood, answer: str, mia_k: float) -> dict[str, Any]:
    """Fields for memorization and membership inference, from the likelihood of the answer itself."""
    return {
        "exact_memorization": exact_memorization(likelihood.correct),
        "extraction_strength": extraction_strength(likelihood.correct),
        "min_k": lowest_mean(likelihood.log_probs, mia_k),
        "min_k_plus_plus": lowest_mean(likelihood.z_scores, mia_k),
        "mia_k": mia_k,
        "zlib_bytes": zlib_bytes(answer),
    }


def _rouge_fields(generated: str, answer: str) -> dict[str, float]:
    """ROUGE-L recall as published and in any script, each if it finds a word in the answer."""
    fields = {
        "rougeL_recall": rouge_l_recall(generated, answer),
        "rougeL_recall_unicode": rouge_l_recall(generated, answer, in_any_script=True),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _exposure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, secret: Secret, options: EvalOptions
) -> float:
    """Exposure of a secret among random ones, each in its place in the same answer."""
    texts = [secret.text, *draw_candidates(secret.text, secret.format, options.exposure_candidates)]
    rows = [tokenize_row(secret.replaced(text), tokenizer, options) for text in texts]
    likelihoods = answer_likelihoods(model, rows, options.batch_size, padding_token_id(tokenizer))
    own, *others = (math.fsum(likelihood.log_probs) for likelihood in likelihoods)
    return exposure(own, others)


def _evaluate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    options: EvalOptions,
    progress: bool,
) -> None:
    """Complete the records of `samples`."""
    flat = [tokenized for sample in samples for tokenized in sample.answers]
    likelihoods = iter(answer_likelihoods(model, flat, options.batch_size, padding_token_id(tokenizer)))
    for sample in samples:
        own = [next(likelihoods) for _ in sample.answers]
        sample.record.update(_loss_fields(own, sample.has_paraphrase))
        sample.record.update(_memorization_fields(own[0], sample.record["answer"], options.mia_k))
    if options.generate:
        with_prompt = [sample for sample in samples if sample.prompt]
        prompts = [sample.prompt for sample in with_prompt]
        texts = generate_answers(model, tokenizer, prompts, options.batch_size, options.max_new_tokens)
        for sample, text in zip(with_prompt, texts, strict=True):
            sample.record.update(generated=text, **_rouge_fields(text, sample.record["answer"]))
            if sample.secret is not None:
                secret, secret_format = sample.secret.text, sample.secret.format
                sample.record["exact_string"] = float(exact_string(text, secret, secret_format))
                sample.record["digits_right"] = digits_right(text, secret, secret_format)
    if options.exposure_candidates:
        whole = (sample for sample in samples if "num_token_cut" not in sample.record)  # or the secret may be cut off
        ranked = [
            (sample.record, sample.secret) for sample in whole if sample.record["set"] == FORGET and sample.secret
        ]
        for record, secret in tqdm(ranked, "Exposure of secrets", leave=False, disable=not (progress and ranked)):
            record["exposure"] = _exposure(model, tokenizer, secret, options)


def evaluate_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    options: EvalOptions,
    *,
    progress: bool = True,
) -> Iterator[list[Sample]]:
    """
    Complete the records of samples of one set, batch by batch, so that finished records can be saved.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model; its train or eval mode is restored.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer; nothing in it is changed.
        samples (`list[Sample]`): Samples from [`prepare_rows`].
        options ([`EvalOptions`]): Options of the evaluation.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Yields:
        `list[Sample]`: Samples whose records are complete, the longest first.
    """
    lengths = [max(len(tokenized["input_ids"]) for tokenized in sample.answers) for sample in samples]
    for indices in batches(lengths, options.batch_size, f"Evaluating {samples[0].record['set']}", progress):
        batch = [samples[i] for i in indices]
        _evaluate_batch(model, tokenizer, batch, options, progress)
        yield batch


def evaluate_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Row],
    set_name: str,
    *,
    progress: bool = True,
    **options: Any,
) -> list[dict[str, Any]]:
    """
    Evaluate every row of a set.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model; its train or eval mode is restored.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer; nothing in it is changed.
        rows (iterable of `dict`): Rows with `question`/`answer`, `prompt`/`completion`, `messages` (the last one is
            the answer), `text` or `input_ids`/`labels`. A row may have `perturbed_answer`, a list of wrong answers, and
            `paraphrased_answer`; they replace its answer or completion as they are. It may have `secret`, a part of its
            answer, and `secret_format`, see [`~wagle_trl.evaluation.secret_format.parse_format`].
        set_name (`str`): Name of the set. The summaries have rules for `forget`, `retain`, `real_authors`,
            `world_facts` and `holdout`.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.
        **options: Options of [`EvalOptions`].

    Returns:
        `list[dict]`: Records with the keys of TOFU's own logs and a few more, in the order of the rows. All have
        `set`, `index`, `question`, `answer`, `avg_gt_loss` (nats per token), `gt_loss` (nats per answer),
        `num_token_gt`, `exact_memorization`, `extraction_strength`, `min_k` and `min_k_plus_plus` (at the share
        `mia_k`) and `zlib_bytes`. Rows with perturbed answers add losses and numbers of tokens for these and for the
        paraphrase (or the answer, if there is none), and `truth_ratio`. With `generate`, rows with a prompt add
        `generated`, and `rougeL_recall` and `rougeL_recall_unicode` where these find a word in the answer; those that have
        a secret too add `exact_string` and `digits_right`. Forget rows with a secret add `exposure`, unless their answer
        is cut.
    """
    chosen = EvalOptions(**options)
    samples = prepare_rows(rows, set_name, tokenizer, chosen)
    for _ in evaluate_samples(model, tokenizer, samples, chosen, progress=progress):
        pass
    records = [sample.record for sample in samples]
    warn_of_no_words(records)
    return records


def warn_of_no_words(records: Iterable[Row]) -> None:
    """Log one line for each set in which ROUGE-L has no value for some rows, with the reason."""
    generated = [record for record in records if "generated" in record]
    for name, count in Counter(record["set"] for record in generated if "rougeL_recall" not in record).items():
        total = sum(record["set"] == name for record in generated)
        logger.warning(
            f"ROUGE-L recall has no value for {count} of {total} rows of the set '{printable(name, 60)}', nor for the set: it "
            "counts words of a-z and 0-9, and their answers have none. rougeL_recall_unicode counts words of every script."
        )


def write_records(records: Iterable[Row], path: str | os.PathLike) -> Path:
    """Write records as JSON lines, atomically: an interrupted call leaves an earlier file as it was."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, allow_nan=False) + "\n" for record in records)
    return Path(path)


def read_records(path: str | os.PathLike) -> list[Record]:
    """Read records that [`write_records`] or the authors of TOFU wrote."""
    return read_jsonl(path, Record)
