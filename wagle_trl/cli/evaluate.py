"""`wagle eval`: records and TOFU aggregates of one model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..data import load_rows, load_tofu_evaluation
from ..evaluation.metrics import forget_quality, summarize, truth_ratios
from ..evaluation.tofu import evaluate_rows, read_records, write_records
from ..files import write_json
from ..trainers.checks import check_writable
from .arguments import asks_for_tofu, load_tokenizer, parse, require_model
from .output import Output

RECORDS_FILE = "wagle_records.jsonl"
SUMMARY_FILE = "wagle_eval.json"


@dataclass
class EvalModel:
    """
    Model to evaluate: those options of TRL's `ModelConfig` and `SFTConfig` that matter without training.

    Args:
        model_name_or_path, model_revision, dtype, attn_implementation, trust_remote_code: As in TRL, except that the
            dtype is by default that of the saved weights.
    """

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model checkpoint for weights initialization."}
    )
    model_revision: str = field(
        default="main",
        metadata={"help": "Specific model version to use. It can be a branch name, a tag name, or a commit id."},
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Override the default `torch.dtype` and load the model under this dtype. 'auto' takes that of the "
            "saved weights.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Which attention implementation to use. You can run `--attn_implementation=flash_attention_2`, in "
            "which case you must install this manually by running `pip install flash-attn --no-build-isolation`."
        },
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "Whether to allow loading models and tokenizers that ship custom Python code from the Hub. "
            "Forwarded to `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`."
        },
    )

    def load(self) -> PreTrainedModel:
        """The model, on the GPU where there is one."""
        model = AutoModelForCausalLM.from_pretrained(
            require_model(self),
            revision=self.model_revision,
            dtype=self.dtype,
            attn_implementation=self.attn_implementation,
            trust_remote_code=self.trust_remote_code,
        )
        return model.to("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class EvalArguments:
    """
    What to evaluate on.

    Args:
        forget_dataset, retain_dataset, unseen_dataset (`str`, *optional*): As in [`~wagle_trl.data.load_rows`].
        tofu_dir, forget (`str`, *optional*): Fill the four sets of TOFU.
        reference_records (`str`, *optional*): Records of a model that never saw the forget rows.
    """

    output_dir: str = field(default="wagle-eval", metadata={"help": "Folder for the records and the summary."})
    forget_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Forget rows: a Hub data set, a folder or a .jsonl file, with question/answer, prompt/completion, "
            "messages, text or input_ids/labels; paraphrased_answer and perturbed_answer give truth ratios."
        },
    )
    retain_dataset: str | None = field(default=None, metadata={"help": "Retain rows, in the same forms."})
    unseen_dataset: str | None = field(
        default=None, metadata={"help": "Retain rows that took no part in unlearning, in the same forms."}
    )
    tofu_dir: str | None = field(
        default=None, metadata={"help": "Folder with the TOFU files; without it TOFU comes from the Hub."}
    )
    forget: str | None = field(
        default=None, metadata={"help": "TOFU split that was forgotten: 'forget01', 'forget05' or 'forget10'."}
    )
    reference_records: str | None = field(
        default=None,
        metadata={
            "help": f"{RECORDS_FILE} of a model trained on the retain rows alone (from `wagle eval`), for the forget "
            "quality."
        },
    )
    batch_size: int = field(default=16, metadata={"help": "Rows in a forward pass or generation."})
    max_new_tokens: int = field(default=200, metadata={"help": "Longest generated answer, in tokens."})
    generate: bool = field(default=True, metadata={"help": "Whether to generate answers for ROUGE-L."})

    def load(self) -> dict[str, list[dict[str, Any]]]:
        """Set name -> rows."""
        if asks_for_tofu(self):
            return load_tofu_evaluation(self.forget or "forget10", self.tofu_dir)
        sources = {"forget": self.forget_dataset, "retain": self.retain_dataset, "unseen_retain": self.unseen_dataset}
        sets = {name: load_rows(source).to_list() for name, source in sources.items() if source is not None}
        if not sets:
            raise ValueError("No data: give --forget_dataset and --retain_dataset, or --forget forget10 for TOFU.")
        return sets


def run(argv: list[str], command: str) -> Output:
    args, model_args = parse([EvalArguments, EvalModel], argv, command)
    sets = args.load()
    reference = None if args.reference_records is None else _reference_ratios(args.reference_records, sets)
    tokenizer, model = load_tokenizer(model_args, model_args.trust_remote_code), model_args.load()
    check_writable(args.output_dir)  # before the long work, but no folder is left behind for a model that is not there
    records = _evaluate(args, sets, model, tokenizer)
    folder = Path(args.output_dir)
    write_records(records, folder / RECORDS_FILE)
    summary = summarize(records)
    if reference is not None:
        quality = forget_quality(truth_ratios(_forget(records)), reference)
        summary |= {"forget_quality": quality.p_value, "forget_quality_ks": quality.statistic}
    write_json(folder / SUMMARY_FILE, {"model": model_args.model_name_or_path, **summary})
    return Output({"output_dir": str(folder), **summary}, [_table(model_args.model_name_or_path, summary)])


def _evaluate(args: EvalArguments, sets: dict[str, list[dict[str, Any]]], model, tokenizer) -> list[dict[str, Any]]:
    options = {"batch_size": args.batch_size, "max_new_tokens": args.max_new_tokens, "generate": args.generate}
    return [record for name, rows in sets.items() for record in evaluate_rows(model, tokenizer, rows, name, **options)]


def _reference_ratios(path: str, sets: dict[str, list[dict[str, Any]]]) -> np.ndarray:
    """What the truth ratios will be compared with; a `ValueError`, before any long work, if either side lacks them."""
    forget = sets.get("forget", [])
    if not forget or not all(row.get("perturbed_answer") for row in forget):
        raise ValueError("--reference_records needs forget rows, all of them with `perturbed_answer`.")
    records = _forget(read_records(path))
    if not records:
        raise ValueError(f"{path} has no records of the set 'forget'.")
    try:
        return truth_ratios(records)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _forget(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record.get("set") == "forget"]


def _table(model: str, summary: dict[str, float]) -> Table:
    table = Table("metric", "value", title=f"Evaluation of {model}")
    for name, value in summary.items():
        table.add_row(name, f"{value:.4g}")
    return table
