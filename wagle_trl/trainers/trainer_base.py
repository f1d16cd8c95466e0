"""What the mixins and functions of this folder may use of a trainer: for type checkers only."""

from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

# The mixins go before a trainer that each subclass chooses, so at run time they must not inherit one: the trainer would come
# too early among the bases. A type checker reads them as if they did
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
    from transformers.trainer_utils import HubStrategy
    from transformers.training_args import OptimizerNames

    from ..attribution.config import MaskConfig
    from ..data.lengths import AnswerTokens
    from ..losses.per_sample import SampleLosses
    from ..masks.mask import WeightMask
    from ..optim.masked_adamw import MaskedAdamW
    from ..planning.planner import Plan, Reference
    from .mask_options import MaskOptions
    from .run_inputs import RunInputs

    class FilledArguments(TrainingArguments):
        """Arguments after `__post_init__`, which fills in and converts these."""

        output_dir: str
        optim: OptimizerNames
        hub_strategy: HubStrategy
        gradient_checkpointing: bool
        gradient_checkpointing_kwargs: dict[str, Any] | None

    class TrainerBase(Trainer):
        """A trainer after `__init__`, with the kind of rows and of model that a mask is for."""

        args: FilledArguments
        model: PreTrainedModel | PeftModel
        processing_class: PreTrainedTokenizerBase
        train_dataset: Dataset

    class RunMemory(Protocol):
        """What a report says of memory: the prediction and the measured peaks."""

        plan: Plan | None
        measured: dict[str, int]

    class MaskedTrainerBase(TrainerBase):
        """The same with what [`~trainers.mask_mixin.MaskMixin`] adds."""

        mask: WeightMask | None
        mask_config: MaskConfig | None
        mask_options: MaskOptions
        forget_dataset: Dataset | None
        retain_dataset: Dataset | None
        run_inputs: RunInputs
        answer_tokens: dict[str, AnswerTokens]
        memory: RunMemory
        train_set: str
        sample_losses: SampleLosses
        planning_losses: SampleLosses | None
        training_losses: SampleLosses | None
        planned_reference: Reference | None
        head_temperature: float | None
        loaded_step: int | None
        earlier_training: Sequence[dict[str, Any]]
        measured_fingerprint: str | None
        _name: str
        _tag_names: list[str]
        _masked_optimizer: MaskedAdamW | None
        _base_fingerprint: str | None
        _plotted_mask: WeightMask | None
        _saves_checkpoint: bool

        @property
        def tokenization(self) -> dict[str, Any] | None: ...

        @property
        def streams(self) -> dict[str, Dataset]: ...

        @property
        def attributed_dataset(self) -> Dataset: ...

        @property
        def mask_report(self) -> dict[str, Any] | None: ...

        @property
        def verdict(self) -> str | None: ...

        def saved_fingerprint(self) -> str | None: ...
else:
    FilledArguments, TrainerBase, MaskedTrainerBase = TrainingArguments, object, object
