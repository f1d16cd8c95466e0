"""Options that several commands share, and what they load."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub.errors import HTTPError
from torch import OutOfMemoryError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging
from trl import ModelConfig

from ..attribution.config import MaskConfig
from ..data.formats import to_trl
from ..data.rows import load_rows
from ..data.tofu import load_tofu
from ..files.tensor_file import TensorFile
from ..text import printable

logger = logging.get_logger(__name__)


def asks_for_tofu(options, own: Sequence[str]) -> bool:
    """Whether the options name TOFU; a `ValueError` if they also name rows that it brings: by the options in `own`."""
    tofu = [name for name in ("forget", "tofu_dir") if getattr(options, name) is not None]
    given = [name for name in own if getattr(options, name) is not None]
    if tofu and given:
        raise ValueError(f"Give either --{given[0]} or --{tofu[0]}, not both.")
    return bool(tofu)


@dataclass
class UnlearningData:
    """
    Forget and retain rows.

    Args:
        forget_dataset, retain_dataset (`str`, *optional*): As in [`~wagle_trl.data.rows.load_rows`].
        unseen_dataset (`str`, *optional*): Rows to watch, in the same forms.
        tofu_dir (`str`, *optional*): Folder of the TOFU data; by default it comes from the Hub.
        forget (`str`, *optional*): TOFU split that fills both data sets.
    """

    forget_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Rows to forget: a Hub data set (`name` or `name:config`), a folder, or a .jsonl file with "
            "prompt/completion, question/answer, messages, text, or input_ids/labels."
        },
    )
    retain_dataset: str | None = field(
        default=None, metadata={"help": "Rows to keep, in the same forms as `forget_dataset`."}
    )
    unseen_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Rows to keep that take no part in attribution or training, in the same forms: what happens to "
            "them is seen beside the others. Unlearning watches them every `trajectory_steps`, fine-tuning "
            "evaluates them with `eval_strategy`."
        },
    )
    tofu_dir: str | None = field(
        default=None, metadata={"help": "Folder with TOFU's full.jsonl; without it TOFU comes from the Hub."}
    )
    forget: str | None = field(
        default=None, metadata={"help": "TOFU split to forget: 'forget01', 'forget05' or 'forget10'. Fills both sets."}
    )

    eval_names = {"train_dataset": "forget", "retain_dataset": "retain"}

    def load(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Dataset]:
        """The data sets as trainers take them, in a form that TRL trains on."""
        forget, retain = self.rows()
        if forget is None or retain is None:
            raise ValueError(
                "No data: give --forget_dataset and --retain_dataset, or --forget forget10 for TOFU (with --tofu_dir "
                "for a local copy)."
            )
        return {"train_dataset": to_trl(forget, tokenizer), "retain_dataset": to_trl(retain, tokenizer)}

    def watched(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Dataset]:
        """Evaluation sets beside those trained on."""
        if self.unseen_dataset is None:
            return {}
        return {"unseen_retain": to_trl(load_rows(self.unseen_dataset), tokenizer)}

    def rows(self) -> tuple[Dataset | None, Dataset | None]:
        """Forget and retain rows as they are, where the options name them."""
        if asks_for_tofu(self, ("forget_dataset", "retain_dataset")):
            return load_tofu(self.forget or "forget10", self.tofu_dir)
        sources = self.forget_dataset, self.retain_dataset
        forget, retain = (None if source is None else load_rows(source) for source in sources)
        return forget, retain


@dataclass
class FineTuningData(UnlearningData):
    """
    Rows to train on, and the rows that say which weights to train.

    Args:
        dataset_name (`str`, *optional*): As in [`~wagle_trl.data.rows.load_rows`]; by default the retain rows.
    """

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Rows to train on, in the same forms; by default the retain rows. Forget and retain rows then say "
            "which weights to train: without forget rows, those that matter for the rows to train on."
        },
    )

    eval_names = {"train_dataset": "train", "forget_dataset": "forget", "retain_dataset": "retain"}

    def load(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Dataset]:
        forget, retain = self.rows()
        train = retain if self.dataset_name is None else load_rows(self.dataset_name)
        if train is None:
            raise ValueError(
                "No data: give --dataset_name (or --retain_dataset) a Hub name, a folder or a .jsonl file."
            )
        datasets = {"train_dataset": train, "forget_dataset": forget, "retain_dataset": retain}
        return {name: to_trl(rows, tokenizer) for name, rows in datasets.items() if rows is not None}


@dataclass
class MaskSource:
    """Where the mask comes from."""

    mask: str = field(
        default="auto",
        metadata={
            "help": "'auto' computes a mask from the mask_* options, 'none' trains all weights, anything else is the "
            "path of a saved mask. With use_peft 'auto' means 'none': a mask of adapters comes from `wagle mask` or "
            "Python, and is given by its path."
        },
    )

    def trainer_arguments(self, config: MaskConfig, use_peft: bool) -> dict:
        """The arguments of a trainer that say what its mask is; none without one."""
        if self.mask == "none" or (self.mask == "auto" and use_peft):
            return {}
        return {"mask_config": config} if self.mask == "auto" else {"mask": self.mask}


@dataclass
class WagleModelConfig(ModelConfig):
    """
    TRL's `ModelConfig`, but for the default of `dtype`.

    Args:
        dtype (`str`, *optional*):
            By default that of the saved weights with a mask, so that what the mask does not select stays as it was
            published, and fp32, as in TRL, without one.
    """

    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Load the model under this dtype. With a mask it defaults to that of the saved weights ('bfloat16' for "
            "float16), so that those that are not selected stay as they are. With 'bfloat16' selected weights of a float32 "
            "model follow a float32 master and train as precisely in half the memory, and all others are rounded. "
            "Without a mask it defaults to 'float32'.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )

    def dtype_for(self, config: PreTrainedConfig, masked: bool) -> str:
        """The dtype to load a model of `config` under."""
        if self.dtype or not masked:
            return self.dtype or "float32"
        if config.dtype == torch.float16:
            logger.warning(
                f"'{printable(self.model_name_or_path, 200)}' is saved in float16, in which small updates vanish; loading it in "
                "bfloat16, which rounds all weights. `--dtype float32` keeps them."
            )
            return "bfloat16"
        return "auto"


def require_model(model_args) -> str:
    """Name or path of the model; a `ValueError` if there is none."""
    if model_args.model_name_or_path is None:
        raise ValueError("No model: give --model_name_or_path a Hub name or a folder.")
    for path in Path(model_args.model_name_or_path).glob("*.safetensors"):
        TensorFile(path)  # transformers would show the names in it as they are, whatever they command
    return model_args.model_name_or_path


def load_config(model_args, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Config of the model."""
    name = require_model(model_args)
    with loading(name):
        return AutoConfig.from_pretrained(
            name, revision=model_args.model_revision, trust_remote_code=trust_remote_code
        )


def load_tokenizer(model_args, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Tokenizer of the model."""
    name = require_model(model_args)
    with loading(name):
        return AutoTokenizer.from_pretrained(
            name, revision=model_args.model_revision, trust_remote_code=trust_remote_code
        )


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Whatever libraries raise for a model whose files are not as they should be is one `ValueError` that names it."""
    try:
        yield
    except (ImportError, OutOfMemoryError, HTTPError):
        raise
    except Exception as error:
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise ValueError(f"Cannot load '{printable(name, 200)}': {kind}{printable(error, 400)}") from error


def model_init_kwargs(model_args: WagleModelConfig, training_args, masked: bool) -> dict:
    """Loading options as TRL's own scripts put them together."""
    config = load_config(model_args, training_args.trust_remote_code)
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype_for(config, masked),
    } | (training_args.model_init_kwargs or {})
