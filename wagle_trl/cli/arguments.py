"""Options that several commands share, and the rows, masks and models that they name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from datasets import Dataset
from huggingface_hub.errors import HTTPError
from torch import OutOfMemoryError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, logging
from trl import ModelConfig, SFTConfig  # pyright: ignore[reportPrivateImportUsage]

from ..attribution.config import MaskConfig
from ..data.rows import load_rows
from ..data.tofu import load_tofu
from ..files.model_class import check_causal_lm
from ..files.model_files import ADAPTER_CONFIG
from ..files.tensor_file import TensorFile
from ..text import printable

logger = logging.get_logger(__name__)

UNSEEN = "unseen_retain"  # the evaluation set of rows that take no part


class TofuOptions(Protocol):
    """Options that name the TOFU data."""

    tofu_split: str | None
    tofu_dir: str | None


class ModelOptions(Protocol):
    """Options that name a model, as in TRL."""

    model_name_or_path: str | None
    model_revision: str


def asks_for_tofu(options: TofuOptions, own: Sequence[str]) -> bool:
    """Whether the options name TOFU. Naming one of the options in `own` too, which TOFU fills, raises a `ValueError`."""
    tofu = [name for name in ("tofu_split", "tofu_dir") if getattr(options, name) is not None]
    given = [name for name in own if getattr(options, name) is not None]
    if tofu and given:
        raise ValueError(f"Give either --{given[0]} or --{tofu[0]}, not both.")
    return bool(tofu)


@dataclass
class UnlearningData:
    """
    Options that name forget and retain rows.

    Args:
        forget_dataset, retain_dataset (`str`, *optional*): As in [`~wagle_trl.data.rows.load_rows`].
        unseen_dataset (`str`, *optional*): Rows to measure, in the same forms.
        tofu_dir (`str`, *optional*): Folder of the TOFU data; by default TOFU is loaded from the Hub.
        tofu_split (`str`, *optional*): TOFU split that fills both data sets.
    """

    forget_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Rows to forget: a Hub data set (`name` or `name:config`), a folder, or a file (.jsonl, .json, .csv, "
            ".tsv, .parquet, .arrow or .txt) with prompt/completion, question/answer, messages, text, or input_ids/labels."
        },
    )
    retain_dataset: str | None = field(
        default=None, metadata={"help": "Rows to keep, in the same forms as `forget_dataset`."}
    )
    unseen_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Rows to keep that take no part in attribution or training, in the same forms. Unlearning measures "
            "them every `trajectory_steps`, fine-tuning evaluates them with `eval_strategy`."
        },
    )
    tofu_dir: str | None = field(
        default=None, metadata={"help": "Folder with TOFU's full.jsonl; by default TOFU is loaded from the Hub."}
    )
    tofu_split: str | None = field(
        default=None, metadata={"help": "TOFU split to forget: 'forget01', 'forget05' or 'forget10'. Fills both sets."}
    )

    eval_names = {"train_dataset": "forget", "retain_dataset": "retain"}

    def load(self, text_field: str = "text") -> dict[str, Dataset]:
        """Load the data sets by the names of a trainer's arguments."""
        forget, retain = self.rows(text_field)
        if forget is None or retain is None:
            rows = {"--forget_dataset": forget, "--retain_dataset": retain}
            missing = " and ".join(name for name, dataset in rows.items() if dataset is None)
            raise ValueError(
                f"No data: give {missing}, or --tofu_split forget10 for TOFU (with --tofu_dir for a local copy)."
            )
        return {"train_dataset": forget, "retain_dataset": retain}

    def load_unseen(self, text_field: str = "text") -> dict[str, Dataset]:
        """Load the evaluation sets that are not trained on."""
        if self.unseen_dataset is None:
            return {}
        return {UNSEEN: load_rows(self.unseen_dataset, text_field=text_field)}

    def rows(self, text_field: str = "text") -> tuple[Dataset | None, Dataset | None]:
        """Load forget and retain rows unchanged; `None` for rows that the options do not name."""
        if asks_for_tofu(self, ("forget_dataset", "retain_dataset")):
            return load_tofu(self.tofu_split or "forget10", self.tofu_dir)
        sources = self.forget_dataset, self.retain_dataset
        forget, retain = (None if source is None else load_rows(source, text_field=text_field) for source in sources)
        return forget, retain


@dataclass
class FineTuningData(UnlearningData):
    """
    Options that name the rows to train on, and the rows that decide which weights to train.

    Args:
        dataset_name (`str`, *optional*): As in [`~wagle_trl.data.rows.load_rows`]; by default the retain rows.
    """

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Rows to train on, in the same forms; by default the retain rows. Forget and retain rows decide "
            "which weights to train. Without forget rows, those that matter for the rows to train on are trained."
        },
    )

    eval_names = {"train_dataset": "train", "forget_dataset": "forget", "retain_dataset": "retain"}

    def load(self, text_field: str = "text") -> dict[str, Dataset]:
        forget, retain = self.rows(text_field)
        train = retain if self.dataset_name is None else load_rows(self.dataset_name, text_field=text_field)
        if train is None:
            raise ValueError("No data: give --dataset_name (or --retain_dataset) a Hub name, a folder or a file.")
        datasets = {"train_dataset": train, "forget_dataset": forget, "retain_dataset": retain}
        return {name: rows for name, rows in datasets.items() if rows is not None}


@dataclass
class MaskSource:
    """Option that says where the mask comes from."""

    mask: str = field(
        default="auto",
        metadata={
            "help": "'auto' computes a mask from the mask_* options, 'none' trains all weights, anything else is the "
            "path of a saved mask. With use_peft 'auto' means 'none': a mask of adapters comes from `wagle mask` or "
            "Python, and is given by its path."
        },
    )

    def trainer_arguments(self, config: MaskConfig, use_peft: bool) -> dict:
        """Choose the arguments that give a trainer its mask; none without a mask."""
        if self.mask == "none" or (self.mask == "auto" and use_peft):
            return {}
        return {"mask_config": config} if self.mask == "auto" else {"mask": self.mask}


@dataclass
class WagleModelConfig(ModelConfig):
    """
    TRL's `ModelConfig` with other defaults of `dtype` and `lora_target_modules`.

    Args:
        dtype (`str`, *optional*):
            By default the dtype of the saved weights with a mask, so that unselected weights stay as published, and fp32
            without one, as in TRL.
        lora_target_modules (`list[str]`, *optional*, defaults to `["all-linear"]`):
            Modules that get adapters. Those of the queries and values alone, PEFT's choice for many models, brought the
            retain rows back in no run.
    """

    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Load the model under this dtype. With a mask it defaults to the dtype of the saved weights ('bfloat16' for "
            "float16), so that unselected weights stay as they are. With 'bfloat16' the selected weights of a float32 model "
            "follow a float32 master and train as precisely in half the memory, and all others are rounded. Without a mask "
            "it defaults to 'float32'.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )

    lora_target_modules: list[str] | None = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "Modules that get adapters: their names, or all-linear."},
    )

    def dtype_for(self, config: PreTrainedConfig, masked: bool) -> str:
        """Choose the dtype to load a model of `config` in."""
        if self.dtype or not masked:
            return self.dtype or "float32"
        if config.dtype == torch.float16:
            logger.warning(
                f"'{printable(self.model_name_or_path, 200)}' is saved in float16, in which small updates vanish; loading it in "
                "bfloat16, which rounds all weights. `--dtype float32` keeps them."
            )
            return "bfloat16"
        return "auto"


def require_model(model_args: ModelOptions) -> str:
    """Name or path of the model. Options without one raise a `ValueError`."""
    if model_args.model_name_or_path is None:
        raise ValueError("No model: give --model_name_or_path a Hub name or a folder.")
    folder = Path(model_args.model_name_or_path)
    if folder.is_dir() and not any((folder / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG)):
        raise ValueError(f"No model in '{printable(folder, 200)}': the folder has no {CONFIG_NAME}.")
    for path in folder.glob("*.safetensors"):
        TensorFile(path)  # refuses names of tensors with control characters, which transformers would print
    return model_args.model_name_or_path


def load_config(model_args: ModelOptions, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Load the config of the model."""
    name = require_model(model_args)
    if Path(name, ADAPTER_CONFIG).is_file() and not Path(name, CONFIG_NAME).is_file():
        raise ValueError(f"'{printable(name, 200)}' holds adapters; merge them into their model and give that.")
    with loading(name):
        return AutoConfig.from_pretrained(
            name, revision=model_args.model_revision, trust_remote_code=trust_remote_code
        )


def load_tokenizer(model_args: ModelOptions, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model."""
    name = require_model(model_args)
    if Path(name).is_dir() and not any(Path(name).glob("*token*")) and not any(Path(name).glob("*.model")):
        raise ValueError(
            f"'{printable(name, 200)}' has no tokenizer; save that of the base model there: `tokenizer.save_pretrained(folder)`."
        )
    with loading(name):
        return AutoTokenizer.from_pretrained(
            name, revision=model_args.model_revision, trust_remote_code=trust_remote_code
        )


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn whatever libraries raise for a model with invalid files into one `ValueError` that names the model."""
    try:
        yield
    except (ImportError, OutOfMemoryError, HTTPError):
        raise
    except Exception as error:
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise ValueError(f"Cannot load '{printable(name, 200)}': {kind}{printable(error, 400)}") from error


def model_init_kwargs(model_args: WagleModelConfig, training_args: SFTConfig, masked: bool) -> dict:
    """Combine the options of loading as TRL's own scripts do."""
    config = load_config(model_args, training_args.trust_remote_code)
    check_causal_lm(config)
    given: dict = training_args.model_init_kwargs or {}  # pyright: ignore[reportAssignmentType]
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype_for(config, masked),
    } | given
