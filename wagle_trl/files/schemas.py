"""Schemas of files, for [`~wagle_trl.files.reading`]. They name the keys that are read; files may have others."""

import re
from typing import Annotated, Any, Literal, Required

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, PositiveInt, TypeAdapter
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

Count = Annotated[int, Field(ge=0, lt=2**63)]

_IN_BLOCK = r"^[ -_a-z{|}~]{1,500}$"  # printable ASCII without backticks
_NUMBERS = TypeAdapter(dict[str, float])
_MEASURED = (
    "model_utility|forget_quality(_ks)?|privleak|weights_changed|(kl_to_base|mia)_.*|"
    ".*_(prob|rougeL_recall(_unicode)?|truth_ratio|exact_memorization|extraction_strength|"
    "exact_string|digits_right|exposure)"
)


def _numbers_under(names: str) -> BeforeValidator:
    """Make a validator: values whose names match a pattern must be numbers."""
    pattern = re.compile(names)

    def check(content: Any) -> Any:
        if isinstance(content, dict):
            found = {name: value for name, value in content.items() if pattern.fullmatch(name)}
            _NUMBERS.validate_python(found, strict=True)
        return content

    return BeforeValidator(check)


def _text_or(schema: Any) -> AfterValidator:
    """Make a validator: a value must be text, null or a list of the schema. Errors of a union would name its members."""
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
    """Origin of rows, see [`~data.provenance.describe_rows`]."""

    rows: Required[Count]
    source: str | None
    revision: str | None
    config: str | None
    split: str | None
    sha256: str | None
    hmac_sha256: str | None


class MaskReport(TypedDict, total=False):
    """Selection of a mask, see [`~attribution.report.mask_report`]."""

    num_selected: Required[Count]
    numel: Required[Count]
    density: Required[float]
    info: Required[dict[str, str]]
    density_by_layer: Required[dict[str, float]]
    density_by_module: dict[str, float]
    jaccard: dict[str, float | None]


class TrainingOptions(TypedDict, total=False):
    """Options of a run that are used, not only shown."""

    learning_rate: float | None
    max_steps: int | None
    retain_weight: float | None
    stop_forget_probability: float | None
    stop_retain_probability: float
    stop_patience: Count


class _LogEntry(TypedDict, total=False):
    step: Required[Count]
    loaded_step: Count


LogEntry = Annotated[_LogEntry, _numbers_under(".*_probability")]


class EarlierTraining(TypedDict):
    """A call of `train` that the weights went through before the last one."""

    steps: Count
    log_history: list[LogEntry]


class MemoryPlan(TypedDict, total=False):
    """Predicted bytes by component, at the peak of each phase, see [`~planning.planner.Plan`]."""

    attribution: dict[str, Count] | None
    training: dict[str, Count]


class Cost(TypedDict, total=False):
    """Costs of a run, which differ per machine."""

    peak_memory_bytes: dict[str, float]
    memory_plan: MemoryPlan | None


class CitedPaper(TypedDict):
    """[`~papers.Paper`] that a card shows in a code block."""

    arxiv: Annotated[str, Field(pattern=r"^[0-9]{4}\.[0-9]{5}$")]
    title: Annotated[str, Field(pattern=_IN_BLOCK)]
    authors: Annotated[str, Field(pattern=_IN_BLOCK)]


class Tokenization(TypedDict, total=False):
    """What decides which tokens of a row are scored, see [`~data.tokenization.RowOptions`]."""

    dataset_text_field: str
    completion_only_loss: bool | None
    assistant_only_loss: bool
    max_length: Annotated[int, Field(ge=1, lt=2**63)] | None
    truncation_mode: Literal["keep_start", "keep_end"]
    formatting_func: bool


class CountedTokens(TypedDict):
    """What is scored of the answers of a set, see [`~data.lengths.AnswerTokens`]."""

    rows: Count
    rows_cut: Count
    given: Count
    scored: Count


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
    tokenization: Tokenization | None
    answer_tokens: dict[str, CountedTokens]
    mask: MaskReport | None
    steps: Count | None
    loaded_step: Count | None
    measured_fingerprint: str | None
    earlier_training: list[EarlierTraining]
    log_history: list[LogEntry]
    versions: dict[str, str]
    cost: Cost


# wagle_eval.json


class CurvePoint(TypedDict):
    """Measurement while forget rows are relearned."""

    step: Count
    forget_probability: float


class _Attack(TypedDict, total=False):
    rounding: str
    rows: dict[str, Count]
    curve: list[CurvePoint]
    relearned_rows: list[Count]


Attack = Annotated[_Attack, _numbers_under(_MEASURED)]


class EvaluationOptions(TypedDict, total=False):
    """Options of an evaluation that are used, not only kept."""

    forget: str | None


class _Evaluation(TypedDict, total=False):
    model: str | None
    base_model: str | None
    fingerprint: str | None
    adapter_fingerprint: str | None
    options: EvaluationOptions
    weights_changed_by_layer: dict[str, float]
    attacks: dict[str, Attack]


Evaluation = Annotated[_Evaluation, _numbers_under(_MEASURED)]


# Records and rows, one per line


class Record(TypedDict, total=False):
    """Results for one row of an evaluation, see [`~evaluation.tofu.evaluate_rows`], with the keys of TOFU's own logs."""

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
    exact_string: FiniteFloat
    digits_right: FiniteFloat
    exposure: FiniteFloat
    min_k: FiniteFloat
    min_k_plus_plus: FiniteFloat
    mia_k: FiniteFloat
    zlib_bytes: PositiveInt
    kl_to_base: FiniteFloat


class PartialRecord(Record):
    """Record of an unfinished evaluation."""

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


def _has_sets(columns: dict[str, list[float]]) -> dict[str, list[float]]:
    if not {"step", "forget", "retain"} <= columns.keys():
        raise PydanticCustomError("missing_sets", "should have step, forget and retain")
    if len({len(values) for values in columns.values()}) > 1:
        raise PydanticCustomError("different_lengths", "should have columns of one length")
    return columns


class AlternateRecord(TypedDict):
    """Alternates of a row, see [`~evaluation.alternates`]."""

    row: Count
    alternates: list[str]


class TunedRun(TypedDict):
    """Run of [`~unlearning.tuning.tune`]."""

    options: dict[str, Any]
    length: PositiveInt
    steps: Count
    trajectory: Annotated[dict[str, Annotated[list[FiniteFloat], Field(min_length=1)]], AfterValidator(_has_sets)]
    diverged: str | None


Token = Annotated[int, Field(ge=0, lt=2**31)]
Label = Annotated[int, Field(ge=-100, lt=2**31)]


class Message(TypedDict, total=False):
    """Turn of a conversation. Its content may have several parts, or be missing beside tool calls."""

    role: str
    content: Annotated[Any, _text_or(list)]


TextOrMessages = Annotated[Any, _text_or(list[Message])]
TextOrTexts = Annotated[Any, _text_or(list[str])]


class Row(TypedDict, total=False):
    """Row to train on or to evaluate, in any format that [`~data.rows.load_rows`] supports."""

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
    alternate: TextOrTexts


# Files of transformers, PEFT and safetensors


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
Versions = dict[str, str]  # `versions` in the metadata of a mask
Patterns = list[str] | None  # `scope` and `exclude` in the metadata of a mask
