"""`wagle eval`: records and TOFU aggregates of one model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from ..data import load_rows, load_tofu_evaluation
from ..evaluation.metrics import forget_quality, summarize, truth_ratios
from ..evaluation.tofu import evaluate_rows, read_records, write_records
from ..files import write_json
from .arguments import load_tokenizer, parse, require_model
from .output import Output

RECORDS_FILE = "wagle_records.jsonl"
SUMMARY_FILE = "wagle_eval.json"


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
        if self.tofu_dir is not None or self.forget is not None:
            return load_tofu_evaluation(self.forget or "forget10", self.tofu_dir)
        sources = {"forget": self.forget_dataset, "retain": self.retain_dataset, "unseen_retain": self.unseen_dataset}
        sets = {name: load_rows(source).to_list() for name, source in sources.items() if source is not None}
        if not sets:
            raise ValueError("No data: give --forget_dataset and --retain_dataset, or --forget forget10 for TOFU.")
        return sets


def run(argv: list[str], command: str) -> Output:
    args, model_args = parse([EvalArguments, ModelConfig], argv, command)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    reference = None if args.reference_records is None else truth_ratios(_forget(read_records(args.reference_records)))
    sets, tokenizer = args.load(), load_tokenizer(model_args)
    model = AutoModelForCausalLM.from_pretrained(
        require_model(model_args), revision=model_args.model_revision, dtype=model_args.dtype
    ).to("cuda" if torch.cuda.is_available() else "cpu")
    records = []
    for name, rows in sets.items():
        records += evaluate_rows(
            model,
            tokenizer,
            rows,
            name,
            batch_size=args.batch_size,
            max_new_tokens=args.max_new_tokens,
            generate=args.generate,
        )
    write_records(records, folder / RECORDS_FILE)
    summary = summarize(records)
    if reference is not None:
        quality = forget_quality(truth_ratios(_forget(records)), reference)
        summary |= {"forget_quality": quality.p_value, "forget_quality_ks": quality.statistic}
    write_json(folder / SUMMARY_FILE, {"model": model_args.model_name_or_path, **summary})
    return Output({"output_dir": str(folder), **summary}, [_table(model_args.model_name_or_path, summary)])


def _forget(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["set"] == "forget"]


def _table(model: str, summary: dict[str, float]) -> Table:
    table = Table("metric", "value", title=f"Evaluation of {model}")
    for name, value in summary.items():
        table.add_row(name, f"{value:.4g}")
    return table
