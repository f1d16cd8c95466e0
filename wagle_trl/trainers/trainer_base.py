"""What the mixins of this folder, and its checks, may use of a trainer: for type checkers only."""

from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

# The mixins go before a trainer that each subclass chooses, so at run time they must not inherit one: the trainer would come
# too early among the bases. A type checker reads them as if they did
if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
    from transformers.trainer_utils import HubStrategy
    from transformers.training_args import OptimizerNames

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
else:
    FilledArguments, TrainerBase = TrainingArguments, object
