"""The card of a repository that holds an unlearned model, a mask or a delta."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from yaml import YAMLError

from ..comparison.runs import Run, read_run
from ..data.tofu import TOFU_HUB_NAME
from ..files.model_files import ADAPTER_CONFIG
from ..files.reading import read_text
from ..files.run_folder import CARD_FILE, DELTA_FILE, EVALUATION_FILE, MASK_FILE, REPORT_FILE
from ..text import HUB_ID, code, one_line, printable
from .card_facts import Facts

TEMPLATE = Path(__file__).parent.parent / "templates" / "model_card.md.jinja"
_HOLDS = ("model", "mask", "delta")
# Kind -> library, own tags. Masks and deltas count as adapters: without their base model they are of no use
_LIBRARIES = {
    "model": ("transformers", []),
    "adapter": ("peft", []),
    "mask": ("wagle-trl", ["weight-mask"]),
    "delta": ("wagle-trl", ["sparse-delta"]),
}
# What huggingface_hub and its YAML parser raise for a card whose metadata is malformed
UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, YAMLError)
# Where they are not the name in lower case
_OBJECTIVE_TAGS = {
    "GradAscent": "gradient-ascent",
    "GradDiff": "grad-diff",
    "IdkDPO": "idk-dpo",
    "Masked SFT": "sft",
}


def model_card(
    folder: str | os.PathLike,
    *,
    what: str = "model",
    repo_id: str | None = None,
    model_name: str | None = None,
    base_model: str | None = None,
    before: str | os.PathLike | None = None,
    license: str | None = None,
    hash_forget_set: bool = False,
) -> ModelCard:
    """
    Write the card of a run from the files in its folder. A section whose facts the files lack is left out.

    Args:
        folder (`str` or `os.PathLike`):
            Output folder of a trainer, with any of `wagle_report.json`, `wagle_eval.json` (of `wagle eval
            --output_dir`), `wagle_mask.safetensors` and `wagle_mask.png`.
        what (`str`, *optional*, defaults to `"model"`):
            Content of the repository: `"model"` (or its adapters), `"mask"` or `"delta"`.
        repo_id (`str`, *optional*):
            Repository of the card, such as `"user/name"`.
        model_name (`str`, *optional*):
            Title; by default the name of the repository, else of the folder.
        base_model (`str`, *optional*):
            Name of the base model on the Hub, if the run loaded it from a folder.
        before (`str` or `os.PathLike`, *optional*):
            Output folder of `wagle eval` of the base model, to compare with.
        license (`str`, *optional*):
            Identifier of the licence on the Hub; by default the licence that the card of the base model states.
        hash_forget_set (`bool`, *optional*, defaults to `False`):
            Whether the card names no data set, only the number of rows and their keyed digest.

    Returns:
        [`~huggingface_hub.ModelCard`]: The card; `card.save(path)` writes it.

    Example:
    ```python
    >>> model_card("unlearned", repo_id="user/unlearned", before="base-eval").save("unlearned/README.md")
    ```
    """
    if what not in _HOLDS:
        raise ValueError(f"what must be one of {', '.join(_HOLDS)}, got '{what}'.")
    run = _read_folder(Path(folder), what)
    name = model_name or (repo_id or Path(folder).resolve().name).split("/")[-1]
    compared = None if before is None else _read_before(Path(before), run)
    is_adapter = run.training.get("peft_type", (run.folder / ADAPTER_CONFIG).exists())
    kind = "adapter" if what == "model" and is_adapter else what
    data = run.training.get("data", {}).values()
    is_hashed = hash_forget_set or (bool(data) and all(rows.keys() == {"rows", "hmac_sha256"} for rows in data))
    facts = Facts(run, kind, name, repo_id, base_model, compared, is_hashed)
    if what != "model" and not facts.mask:
        raise ValueError(f"The run in '{folder}' has no mask, only a model.")
    licence = {"license": license} if license else _licence_of_base(facts)
    licence_name = licence.get("license_name") or licence.get("license")
    return ModelCard.from_template(
        _metadata(facts, licence),
        template_path=str(TEMPLATE),
        facts=facts,
        licence=code(licence_name) if licence else None,
        is_given=bool(license),
    )


def _read_folder(folder: Path, what: str) -> Run:
    run = read_run(folder)
    has_delta = what == "delta" and (folder / DELTA_FILE).exists()
    if not (run.training or run.evaluation or run.has_mask or has_delta):
        names = ", ".join((REPORT_FILE, EVALUATION_FILE, MASK_FILE))
        raise ValueError(f"No card can be written from '{folder}': it holds none of {names}.")
    if what == "mask" and not run.has_mask:
        raise ValueError(f"'{folder}' holds no mask ({MASK_FILE}); a run without a mask has a model only.")
    return run


def _read_before(folder: Path, after: Run) -> Run:
    run = read_run(folder)
    if not run.evaluation:
        raise ValueError(f"'{folder}' holds no {EVALUATION_FILE}; give the folder of `wagle eval` of the base model.")
    measured, mask = run.evaluation.get("fingerprint"), after.training.get("mask")
    base = mask["info"].get("fingerprint") if mask else None
    is_other = base and measured != base
    if measured and (is_other or (after.training.get("steps") and measured == after.training.get("fingerprint"))):
        raise ValueError(
            f"The evaluation in '{folder}' is not of the model that the run in '{after.folder}' started from; give the folder of "
            "`wagle eval` of that base model."
        )
    return run


def _metadata(facts: Facts, licence: dict[str, Any]) -> ModelCardData:
    library, tags = _LIBRARIES[facts.kind]
    relation = "finetune" if facts.kind == "model" else "adapter"
    return ModelCardData(
        base_model=facts.base_id,
        base_model_relation=relation if facts.base_id else None,
        library_name=library,
        **licence,
        datasets=facts.data.datasets or None,
        pipeline_tag=None if facts.kind == "mask" else "text-generation",
        tags=["generated_from_trainer", "trl", "wagle-trl", *_objective_tags(facts), *tags],
        model_name=one_line(facts.name),
        eval_results=_results(facts) or None,
    )


def _objective_tags(facts: Facts) -> list[str]:
    is_for_unlearning = facts.unlearns or (facts.kind == "mask" and not facts.data.sets)
    unlearning = ["unlearning"] if is_for_unlearning else []
    objective = facts.objective
    if not facts.is_trained or objective is None:
        return unlearning
    words = re.findall(r"[a-z0-9]+", objective.lower())
    tag = _OBJECTIVE_TAGS.get(objective, "-".join(words))
    return [*unlearning, *([tag] if tag else [])]


def _results(facts: Facts) -> list[EvalResult]:
    """List what was measured after unlearning."""
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Unlearning",
            **_data_set(None if "unseen" in metric.key else facts.tofu, column),
            metric_type=one_line(metric.key),
            metric_name=one_line(metric.heading),
            metric_value=numbers[metric.key],
        )
        for column, numbers in facts.measured.items()
        for metric in facts.metrics
        if column != "before" and metric.key in numbers
    ]


def _data_set(tofu: str | None, column: str) -> dict[str, Any]:
    """Describe the data set of a result. Its configuration tells attacks apart."""
    return {
        "dataset_type": TOFU_HUB_NAME if tofu else "unlearning",
        "dataset_name": "TOFU" if tofu else "forget and retain rows",
        "dataset_config": tofu if column == "after" else f"{tofu or 'rows'} under attack: {column}",
    }


def read_card(path: str | os.PathLike) -> ModelCard:
    """Read the card in a file; a `ValueError` names the file if the metadata is malformed."""
    text = read_text(path)
    try:
        return ModelCard(text)
    except UNREADABLE as error:
        raise ValueError(f"{printable(path, 300)} is not a model card: {printable(error, 300)}") from error


def _licence_of_base(facts: Facts) -> dict[str, str]:
    """Find the licence of the base; none if its folder is gone: on the Hub, that path may be somebody else's model."""
    name = facts.base_name or ""
    return base_licence(name) if facts.base_id or os.path.isdir(name) else {}


@cache
def base_licence(base: str) -> dict[str, str]:
    """
    Read the licence that the card of a model states.

    Args:
        base (`str`): Repository or folder.

    Returns:
        `dict[str, str]`: `license`, for a licence that the Hub does not list also `license_name` and `license_link`.
        Empty if the card states none or cannot be read.
    """
    try:
        source = Path(base, CARD_FILE) if os.path.isdir(base) else base
        data = ModelCard.load(source, ignore_metadata_errors=True).data.to_dict()
    except (OSError, *UNREADABLE):  # a malformed card, no network, or no card
        return {}
    known = {key: data[key] for key in ("license", "license_name", "license_link") if isinstance(data.get(key), str)}
    if not HUB_ID.fullmatch(known.get("license", "")):
        return {}
    if not re.fullmatch(r"https://[\w./-]+", known.get("license_link", "")):  # a file of the other repository
        known.pop("license_link", None)
    return known
