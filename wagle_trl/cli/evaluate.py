"""`wagle eval`: records and aggregates of one model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..data import load_rows, load_tofu_evaluation
from ..evaluation.drift import weights_changed
from ..evaluation.reference import read_reference
from ..evaluation.robustness import AttackConfig, evaluate_attack
from ..evaluation.suite import PARTIAL_FILE, evaluate_sets, summarize_all, unseen_set
from ..evaluation.tofu import EvalOptions, write_records
from ..files import EVALUATION_FILE, write_json
from ..trainers.checks import check_writable
from .arguments import asks_for_tofu, load_tokenizer, parse, require_model
from .output import Output

RECORDS_FILE = "wagle_records.jsonl"
ATTACKS_FOLDER = "attacks"


@dataclass
class EvalModel:
    """
    Model to evaluate: those options of TRL's `ModelConfig` and `SFTConfig` that matter without training.

    Args:
        model_name_or_path, model_revision, dtype, attn_implementation, trust_remote_code: As in TRL, except that the
            dtype is by default that of the saved weights.
        base_model_name_or_path (`str`, *optional*): The model before unlearning.
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
    base_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "The model before unlearning, for the KL divergence to it on unseen text (unseen, else holdout, "
            "else retain rows) and the share of weights changed. Both models are in memory at once."
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

    def load_base(self, model: PreTrainedModel) -> PreTrainedModel | None:
        """The model before unlearning, if one is named, beside `model` and in its dtype."""
        if self.base_model_name_or_path is None:
            return None
        base = AutoModelForCausalLM.from_pretrained(
            self.base_model_name_or_path,
            dtype=model.dtype,
            attn_implementation=self.attn_implementation,
            trust_remote_code=self.trust_remote_code,
        )
        return base.to(model.device)


@dataclass
class EvalArguments:
    """
    What to evaluate on.

    Args:
        forget_dataset, retain_dataset, unseen_dataset, holdout_dataset (`str`, *optional*): As in
            [`~wagle_trl.data.load_rows`].
        tofu_dir, forget (`str`, *optional*): Fill the sets of TOFU.
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
    holdout_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Rows like the forget rows that no model was trained on, in the same forms, for membership "
            "inference. TOFU brings its own."
        },
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
            "help": f"{RECORDS_FILE} of a model trained on the retain rows alone (from `wagle eval`): for the forget "
            "quality, where both have perturbed answers, and for PrivLeak, where both have holdout rows."
        },
    )
    batch_size: int = field(default=16, metadata={"help": "Rows in a forward pass or generation."})
    max_new_tokens: int = field(default=200, metadata={"help": "Longest generated answer, in tokens."})
    generate: bool = field(default=True, metadata={"help": "Whether to generate answers for ROUGE-L."})
    mia_k: float = field(
        default=0.4,
        metadata={
            "help": "Share of an answer's tokens that Min-K%% and Min-K%%++ look at. Default of OpenUnlearning and MUSE."
        },
    )

    def load(self) -> dict[str, list[dict[str, Any]]]:
        """Set name -> rows."""
        if asks_for_tofu(self):
            return load_tofu_evaluation(self.forget or "forget10", self.tofu_dir)
        sources = {
            "forget": self.forget_dataset,
            "retain": self.retain_dataset,
            "unseen_retain": self.unseen_dataset,
            "holdout": self.holdout_dataset,
        }
        sets = {name: load_rows(source).to_list() for name, source in sources.items() if source is not None}
        if not sets:
            raise ValueError("No data: give --forget_dataset and --retain_dataset, or --forget forget10 for TOFU.")
        if "holdout" in sets and "forget" not in sets:
            raise ValueError("--holdout_dataset needs --forget_dataset: membership inference tells the two apart.")
        return sets

    def options(self) -> EvalOptions:
        """How to evaluate."""
        return EvalOptions(self.batch_size, self.max_new_tokens, self.generate, self.mia_k)


def run(argv: list[str], command: str) -> Output:
    args, attacks, model_args = parse([EvalArguments, AttackConfig, EvalModel], argv, command)
    sets, options = args.load(), args.options()
    attacks.check(sets)
    if model_args.base_model_name_or_path is not None:
        unseen_set(sets)
    reference = None if args.reference_records is None else read_reference(args.reference_records, sets, options)
    tokenizer, model = load_tokenizer(model_args, model_args.trust_remote_code), model_args.load()
    base = model_args.load_base(model)
    check_writable(args.output_dir)  # before the long work, but no folder is left behind for a model that is not there
    folder = Path(args.output_dir)
    records = evaluate_sets(model, tokenizer, sets, options, base=base, folder=folder)
    write_records(records, folder / RECORDS_FILE)
    summary = summarize_all(records, reference)
    if base is not None:
        changed = weights_changed(model, dict(base.named_parameters()))
        summary |= {"weights_changed": changed.share, "weights_changed_by_layer": changed.by_layer}
        del base  # the attacks need its memory
    if attacks.attack:
        summary["attacks"] = _attack(model, tokenizer, sets, options, attacks, folder / ATTACKS_FOLDER)
    names = {"model": model_args.model_name_or_path, "base_model": model_args.base_model_name_or_path}
    write_json(folder / EVALUATION_FILE, {key: name for key, name in names.items() if name is not None} | summary)
    for partial in (folder / PARTIAL_FILE, *(folder / ATTACKS_FOLDER).glob(f"*/{PARTIAL_FILE}")):
        partial.unlink()
    return Output({"output_dir": str(folder), **summary}, _tables(model_args.model_name_or_path, summary))


def _attack(model, tokenizer, sets, options: EvalOptions, attacks: AttackConfig, folder: Path) -> dict[str, dict]:
    """Aggregates under every attack; the records go to a folder each."""
    summaries = {}
    with tqdm(attacks.variants, desc="Attacks") as bar:
        for variant in bar:
            bar.set_postfix_str(variant)
            (folder / variant).mkdir(parents=True, exist_ok=True)
            result = evaluate_attack(model, tokenizer, sets, variant, attacks, options, folder=folder / variant)
            write_records(result.records, folder / variant / RECORDS_FILE)
            summaries[variant] = result.summary
    return summaries


def _tables(model: str, summary: dict[str, Any]) -> list[Table]:
    table = Table("metric", "value", title=f"Evaluation of {model}")
    layers = Table("layer", "share", title="Weights changed")
    for name, value in summary.items():
        if not isinstance(value, dict):
            table.add_row(name, f"{value:.4g}")
    for layer, share in summary.get("weights_changed_by_layer", {}).items():
        layers.add_row(layer, f"{share:.4g}")
    return [table, *([layers] if layers.row_count else []), *_attack_tables(summary)]


def _attack_tables(summary: dict[str, Any]) -> list[Table]:
    """Aggregates without and under attack beside each other, and the curve of relearning."""
    attacks = summary.get("attacks", {})
    if not attacks:
        return []
    columns = {"clean": summary} | {name.removeprefix("quantize_"): values for name, values in attacks.items()}
    table = Table("metric", *columns, title="Under attack")
    for name in summary:
        if any(name in values for values in attacks.values()):
            shown = [f"{values[name]:.4g}" if name in values else "" for values in columns.values()]
            table.add_row(name, *shown)
    if "relearn" not in attacks:
        return [table]
    trained, rest = len(attacks["relearn"]["relearned_rows"]), attacks["relearn"]["rows"]["forget"]
    curve = Table(f"steps on {trained} forget rows", f"forget_prob of the other {rest}", title="Relearning")
    for point in attacks["relearn"]["curve"]:
        curve.add_row(str(point["step"]), f"{point['forget_probability']:.4g}")
    return [table, curve]
