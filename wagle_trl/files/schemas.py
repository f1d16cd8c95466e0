"""What each kind of file from outside holds, as far as it is read: for [`~wagle_trl.files.reading`]. Other keys may be there."""

import re
from typing import Annotated, Any, Required

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, PositiveInt, TypeAdapter
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

Count = Annotated[int, Field(ge=0, lt=2**63)]

_IN_BLOCK = r"^[ -_a-z{|}~]{1,500}$"  # printable ASCII without backticks
_NUMBERS = TypeAdapter(dict[str, float])
_MEASURED = (
    "model_utility|forget_quality(_ks)?|privleak|weights_changed|(kl_to_base|mia)_.*|"
    ".*_(prob|rougeL_recall(_unicode)?|truth_ratio|exact_memorization|extraction_strength)"
)


def _numbers_under(names: str) -> BeforeValidator:
    """Checks that what has a name of this pattern is a number."""
    pattern = re.compile(names)

    def check(content: Any) -> Any:
        if isinstance(content, dict):
            found = {name: value for name, value in content.items() if pattern.fullmatch(name)}
            _NUMBERS.validate_python(found, strict=True)
        return content

    return BeforeValidator(check)


def _text_or(schema: Any) -> AfterValidator:
    """Checks that it is text, null or what a schema of lists says: errors of a union name its parts, too."""
    adapter = TypeAdapter(schema)

    def check(value: Any) -> Any:
        if isinstance(value, list):
            adapter.validate_python(value, strict=True)
        elif not isinstance(value, str | None):
            raise PydanticCustomError("text_or_list", "should be text or a list")
        return value

    return AfterValidator(check)


# wagle_report.json


class RowSet(TypedDict, total=False):
    """Where rows come from, see [`~data.provenance.describe_rows`]."""

    rows: Required[Count]
    source: str | None
    revision: str | None
    config: str | None
    split: str | None
    sha256: str | None
    hmac_sha256: str | None


class MaskReport(TypedDict, total=False):
    """What a mask selected, see [`~attribution.report.mask_report`]."""

    num_selected: Required[Count]
    numel: Required[Count]
    density: Required[float]
    info: Required[dict[str, str]]
    density_by_layer: Required[dict[str, float]]
    density_by_module: dict[str, float]
    jaccard: dict[str, float | None]


class TrainingOptions(TypedDict, total=False):
    """Options of a run that are more than shown."""

    learning_rate: float | None
    max_steps: int | None
    retain_weight: float | None


class _LogEntry(TypedDict, total=False):
    step: Required[Count]


LogEntry = Annotated[_LogEntry, _numbers_under(".*_probability")]


class Cost(TypedDict, total=False):
    """What machine and hour decide."""

    peak_memory_bytes: dict[str, float]


class CitedPaper(TypedDict):
    """A [`~papers.Paper`], which a card has in a block of code."""

    arxiv: Annotated[str, Field(pattern=r"^[0-9]{4}\.[0-9]{5}$")]
    title: Annotated[str, Field(pattern=_IN_BLOCK)]
    authors: Annotated[str, Field(pattern=_IN_BLOCK)]


class Report(TypedDict, total=False):
    """`wagle_report.json`, see [`~trainers.run_report`]."""

    objective: str | None
    paper: CitedPaper | None
    base_model: str | None
    base_revision: str | None
    base_is_local: bool | None
    peft_type: str | None
    fingerprint: str | None
    data: dict[str, RowSet]
    num_train_rows: Count | None
    num_retain_rows: Count | None
    options: TrainingOptions
    mask: MaskReport | None
    steps: Count | None
    log_history: list[LogEntry]
    versions: dict[str, str]
    cost: Cost


# wagle_eval.json


class CurvePoint(TypedDict):
    """A measurement while forget rows are learned again."""

    step: Count
    forget_probability: float


class _Attack(TypedDict, total=False):
    rounding: str
    rows: dict[str, Count]
    curve: list[CurvePoint]
    relearned_rows: list[Count]


Attack = Annotated[_Attack, _numbers_under(_MEASURED)]


class EvaluationOptions(TypedDict, total=False):
    """Options of an evaluation that are more than kept."""

    forget: str | None


class _Evaluation(TypedDict, total=False):
    model: str | None
    base_model: str | None
    fingerprint: str | None
    options: EvaluationOptions
    weights_changed_by_layer: dict[str, float]
    attacks: dict[str, Attack]


Evaluation = Annotated[_Evaluation, _numbers_under(_MEASURED)]


# Records and rows, a line each


class Record(TypedDict, total=False):
    """What is known of a row of an evaluation, see [`~evaluation.tofu.evaluate_rows`]; TOFU's own logs have the same."""

    set: str
    index: Count
    question: str
    answer: str
    generated: str
    avg_gt_loss: FiniteFloat
    gt_loss: FiniteFloat
    num_token_gt: PositiveInt
    avg_paraphrased_loss: FiniteFloat
    average_perturb_loss: Annotated[list[FiniteFloat], Field(min_length=1)]
    truth_ratio: FiniteFloat
    rougeL_recall: FiniteFloat
    rougeL_recall_unicode: FiniteFloat
    exact_memorization: FiniteFloat
    extraction_strength: FiniteFloat
    min_k: FiniteFloat
    min_k_plus_plus: FiniteFloat
    mia_k: FiniteFloat
    zlib_bytes: PositiveInt
    kl_to_base: FiniteFloat


class PartialRecord(Record):
    """One of an evaluation that is not finished."""

    set: Required[str]
    index: Required[Count]
    question: Required[str]
    answer: Required[str]
    avg_gt_loss: Required[FiniteFloat]
    gt_loss: Required[FiniteFloat]
    num_token_gt: Required[PositiveInt]
    exact_memorization: Required[FiniteFloat]
    extraction_strength: Required[FiniteFloat]
    min_k: Required[FiniteFloat]
    min_k_plus_plus: Required[FiniteFloat]
    mia_k: Required[FiniteFloat]
    zlib_bytes: Required[PositiveInt]


Token = Annotated[int, Field(ge=0, lt=2**31)]
Label = Annotated[int, Field(ge=-100, lt=2**31)]


class Message(TypedDict, total=False):
    """A turn of a conversation; its content may be of several parts, or none beside calls of tools."""

    role: str
    content: Annotated[Any, _text_or(list)]


TextOrMessages = Annotated[Any, _text_or(list[Message])]


class Row(TypedDict, total=False):
    """A row to train on or to evaluate, in any of the forms that [`~data.rows.load_rows`] takes."""

    input_ids: list[Token] | None
    labels: list[Label] | None
    messages: list[Message] | None
    prompt: TextOrMessages
    completion: TextOrMessages
    question: str | None
    answer: str | None
    text: str | None
    paraphrased_answer: str | None
    perturbed_answer: list[str] | None


# Of transformers, PEFT and safetensors


class WeightIndex(TypedDict, total=False):
    """`model.safetensors.index.json`."""

    metadata: dict[str, Any] | None
    weight_map: Required[dict[str, str]]


class AdapterConfig(TypedDict, total=False):
    """`adapter_config.json`."""

    base_model_name_or_path: str | None
    revision: str | None


Config = dict[str, Any]  # `config.json`: its keys depend on the model
MaskOverlaps = dict[str, float | None]  # `jaccard` in the metadata of a mask
Versions = dict[str, str]  # `versions` there
Patterns = list[str] | None  # `scope` and `exclude` there
