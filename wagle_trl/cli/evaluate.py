"""`wagle eval`: records and aggregates of one model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.rows import load_rows
from ..data.tofu import load_tofu_evaluation
from ..data.tokenization import RowOptions
from ..evaluation.disjoint import check_disjoint
from ..evaluation.drift import weights_changed
from ..evaluation.membership import HOLDOUT
from ..evaluation.metrics import FORGET
from ..evaluation.retrained_model import read_retrained_records
from ..evaluation.robustness import AttackConfig, AttackResult, evaluate_attack
from ..evaluation.samples import Row
from ..evaluation.suite import evaluate_sets, summarize_all, unseen_set
from ..evaluation.tofu import EvalOptions, write_records
from ..files.atomic import check_writable, move_into_place, staging_folder, write_json
from ..files.earlier_files import evaluated_fingerprint
from ..files.hub_file import is_hub_name
from ..files.manifest import Manifest
from ..files.reading import read_json
from ..files.run_folder import ATTACKS_FOLDER, EVALUATION_FILE, PARTIAL_FILE, RECORDS_FILE, REPORT_FILE
from ..files.schemas import Report
from ..hub.card_file import refresh_card
from ..masks.fingerprint import model_fingerprint
from ..text import printable
from .arguments import asks_for_tofu, load_tokenizer, require_model
from .eval_model import EvalModel
from .eval_tables import evaluation_tables
from .going_on import advising, rerun_advice
from .output import Output
from .parser import parse

logger = logging.get_logger(__name__)


@dataclass
class EvalArguments:
    """
    Options that name the rows to evaluate on.

    Args:
        forget_dataset, retain_dataset, unseen_dataset, holdout_dataset (`str`, *optional*): As in
            [`~wagle_trl.data.rows.load_rows`].
        tofu_dir, tofu_split (`str`, *optional*): Fill all sets but the unseen one with those of TOFU.
        reference_records (`str`, *optional*): Records of a retrained model: one that never saw the forget rows.
    """

    output_dir: str = field(default="wagle-eval", metadata={"help": "Folder for the records and the summary."})
    forget_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Forget rows: a Hub data set, a folder or a file, as in `wagle unlearn`, with question/answer, "
            "prompt/completion, messages, text or input_ids/labels; paraphrased_answer and perturbed_answer give truth ratios, "
            "secret and secret_format (such as ###-####) measures of secrets."
        },
    )
    retain_dataset: str | None = field(default=None, metadata={"help": "Retain rows, in the same forms."})
    unseen_dataset: str | None = field(
        default=None,
        metadata={"help": "Retain rows that took no part in unlearning, in the same forms; also beside TOFU."},
    )
    holdout_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Rows like the forget rows that no model was trained on, in the same forms, for membership "
            "inference. TOFU brings its own."
        },
    )
    tofu_dir: str | None = field(
        default=None, metadata={"help": "Folder with the TOFU files; by default TOFU is loaded from the Hub."}
    )
    tofu_split: str | None = field(
        default=None, metadata={"help": "TOFU split that was forgotten: 'forget01', 'forget05' or 'forget10'."}
    )
    reference_records: str | None = field(
        default=None,
        metadata={
            "help": f"{RECORDS_FILE} of a model trained on the retain rows alone (from `wagle eval`): for the forget "
            "quality, where both have perturbed answers, and for PrivLeak, where both have holdout rows."
        },
    )

    def load(self, text_field: str) -> dict[str, Sequence[Row]]:
        """Load the rows, by the name of their set."""
        own = ("forget_dataset", "retain_dataset", "holdout_dataset")
        sets = load_tofu_evaluation(self.tofu_split or "forget10", self.tofu_dir) if asks_for_tofu(self, own) else {}
        sources = {
            FORGET: self.forget_dataset,
            "retain": self.retain_dataset,
            "unseen_retain": self.unseen_dataset,
            HOLDOUT: self.holdout_dataset,
        }
        given = {name: source for name, source in sources.items() if source is not None}
        sets |= {name: load_rows(source, text_field=text_field).to_list() for name, source in given.items()}
        if not sets:
            raise ValueError("No data: give --forget_dataset and --retain_dataset, or --tofu_split forget10 for TOFU.")
        if HOLDOUT in sets and FORGET not in sets:
            raise ValueError("--holdout_dataset needs --forget_dataset: membership inference tells the two apart.")
        return sets


def run(argv: list[str], command: str) -> Output:
    kinds = [EvalArguments, EvalOptions, AttackConfig, EvalModel]
    *_, model_args = parse(kinds, argv, command)
    args, options, attacks, model_args = parse(kinds, argv, command, **trained_on(model_args))
    with advising(lambda error: rerun_advice(Path(args.output_dir), command, argv)):
        return _evaluate(args, options, attacks, model_args)


def _evaluate(args: EvalArguments, options: EvalOptions, attacks: AttackConfig, model_args: EvalModel) -> Output:
    sets = _checked_sets(args, options, attacks, model_args)
    retrained = (
        None if args.reference_records is None else read_retrained_records(args.reference_records, sets, options)
    )
    tokenizer, model = load_tokenizer(model_args, model_args.trust_remote_code), model_args.load()
    base = model_args.load_base(model)
    check_writable(args.output_dir)  # after loading: a model that is missing leaves no folder
    folder, facts = Path(args.output_dir), _evaluation_facts(args, options, model_args, model)
    _check_same_weights(folder, facts)
    records = evaluate_sets(model, tokenizer, sets, options, base=base, folder=folder)
    summary: dict[str, Any] = {**summarize_all(records, retrained)}
    if base is not None:
        changed = weights_changed(model, dict(base.named_parameters()))
        summary |= {"weights_changed": changed.share, "weights_changed_by_layer": changed.by_layer}
        del base  # the attacks need the memory
    _save(folder, RECORDS_FILE, records, facts | summary)
    if attacks.attack:
        facts["options"] |= asdict(attacks)
        summary["attacks"] = {}
    for variant, result in _attacked(model, tokenizer, sets, options, attacks, folder / ATTACKS_FOLDER):
        summary["attacks"][variant] = result.summary
        # Saved after each attack: the next may run out of memory
        _save(folder, f"{ATTACKS_FOLDER}/{variant}/{RECORDS_FILE}", result.records, facts | summary)
    for partial in (folder / PARTIAL_FILE, *(folder / ATTACKS_FOLDER).glob(f"*/{PARTIAL_FILE}")):
        partial.unlink()
    return Output({"output_dir": str(folder), **summary}, evaluation_tables(require_model(model_args), summary))


def trained_on(model_args: EvalModel) -> dict[str, Any]:
    """The options by which a run of ours made tokens of its rows, from the report beside its model."""
    name = model_args.model_name_or_path
    if name is None:  # said later, after what is wrong with the rows
        return {}
    path = Path(name, REPORT_FILE)
    if not Path(name).is_dir() and is_hub_name(name):
        with suppress(HTTPError, OSError):  # a model that has none, or that cannot be had at all
            path = Path(hf_hub_download(name, REPORT_FILE, revision=model_args.model_revision))
    options: dict[str, Any] = dict(read_json(path, Report).get("tokenization") or {}) if path.is_file() else {}
    if options.pop("formatting_func", False):
        logger.warning(
            f"'{printable(name)}' was trained on rows that a function formatted (formatting_func); give rows as it made them."
        )
    return {name: options[name] for name in RowOptions.__dataclass_fields__ if name in options}


def _checked_sets(
    args: EvalArguments, options: EvalOptions, attacks: AttackConfig, model_args: EvalModel
) -> dict[str, Sequence[Row]]:
    """Load the rows. Rows that do not allow what is asked for raise a `ValueError` before a model is loaded."""
    sets = args.load(options.dataset_text_field)
    check_disjoint(sets, options.dataset_text_field)
    attacks.check(sets)
    if model_args.base_model_name_or_path is not None:
        unseen_set(sets)
    return sets


def _evaluation_facts(
    args: EvalArguments, options: EvalOptions, model_args: EvalModel, model: PreTrainedModel
) -> dict[str, Any]:
    """Record what was evaluated, and how, under the names of the options."""
    names = {"model": model_args.model_name_or_path, "base_model": model_args.base_model_name_or_path}
    given = asdict(options) | {"dtype": str(model.dtype).removeprefix("torch.")} | asdict(args)
    del given["output_dir"]
    fingerprints = {"adapter_fingerprint": model_args.adapter_fingerprint()}
    # Weights rounded to fp16 have another fingerprint than in their files
    is_rounded = model_args.dtype == "float16"
    fingerprints["fingerprint"] = model_args.saved_fingerprint() if is_rounded else model_fingerprint(model)
    return _known(names | fingerprints) | {"options": _known(given)}


def _check_same_weights(folder: Path, facts: Mapping[str, Any]) -> None:
    """Refuse the folder of a run with other weights: its card would show the results as those of the run."""
    run = Manifest.read(folder)
    evaluated = _evaluated_fingerprint(facts)
    if run is not None and None not in (run.fingerprint, evaluated) and run.fingerprint != evaluated:
        raise ValueError(
            f"'{folder}' holds a run with other weights than '{facts['model']}'; choose another --output_dir, as the results "
            "would be shown as those of the run."
        )


def _evaluated_fingerprint(evaluation: Mapping[str, Any]) -> str | None:
    return evaluation.get("adapter_fingerprint", evaluation.get("fingerprint"))


def _known(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if value is not None}


def _attacked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Row]],
    options: EvalOptions,
    attacks: AttackConfig,
    folder: Path,
) -> Iterator[tuple[str, AttackResult]]:
    """Run the attacks one by one. Each keeps its progress in its own folder."""
    with tqdm(attacks.variants, desc="Attacks", disable=not attacks.attack) as bar:
        for variant in bar:
            bar.set_postfix_str(variant)
            (folder / variant).mkdir(parents=True, exist_ok=True)
            result = evaluate_attack(model, tokenizer, sets, variant, attacks, options, folder=folder / variant)
            yield variant, result


def _save(folder: Path, name: str, records: Sequence[Row], evaluation: dict[str, Any]) -> None:
    """Write records and their evaluation together: both files or none. Remove records of attacks on other weights."""
    others = (
        []
        if evaluated_fingerprint(folder) == _evaluated_fingerprint(evaluation)
        else folder.glob(f"{ATTACKS_FOLDER}/*/{RECORDS_FILE}")
    )
    removed = [path.relative_to(folder).as_posix() for path in others]
    with staging_folder(folder) as stage:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        write_records(records, stage / name)
        write_json(stage / EVALUATION_FILE, evaluation)
        move_into_place(stage, folder, [name, EVALUATION_FILE], instead_of=removed)
    refresh_card(folder)
