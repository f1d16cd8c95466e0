"""The model that `wagle eval` and `wagle alternates` run, and the model before unlearning."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from peft import AutoPeftModelForCausalLM, PeftConfig
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import find_adapter_config_file

from ..files.checkpoint import Checkpoint
from ..files.manifest import Manifest, check_same_run
from ..files.model_class import class_of, load_model
from ..files.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ..files.run_folder import MANIFEST_FILE
from ..files.tensor_file import TensorFile
from ..masks.fingerprint import fingerprint_of
from .arguments import loading, require_model


@dataclass
class PlainModel:
    """
    Options that name a model: those of TRL's `ModelConfig` and `SFTConfig` that matter without training.

    Adapters are merged into the model that they were trained on, so that evaluation, attacks and comparison see plain
    weights.

    Args:
        model_name_or_path, model_revision, dtype, attn_implementation, trust_remote_code: As in TRL, but the default
            dtype is that of the saved weights.
    """

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "The model, or adapters, which are merged into their model in its dtype."},
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

    def load(self) -> PreTrainedModel:
        """Load the model, onto the GPU if there is one."""
        model = self._pretrained(require_model(self), self.dtype, self.model_revision)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return model.to(device)  # pyright: ignore[reportArgumentType]

    def _pretrained(self, name: str, dtype: str | torch.dtype, revision: str) -> PreTrainedModel:
        if Path(name, MANIFEST_FILE).is_file():
            has_adapters = Path(name, ADAPTER_CONFIG).is_file()
            files = [ADAPTER_CONFIG, ADAPTER_WEIGHTS] if has_adapters else Checkpoint(name).files
            check_same_run(Path(name), files)
        options = {
            "revision": revision,
            "dtype": dtype,
            "attn_implementation": self.attn_implementation,
            "trust_remote_code": self.trust_remote_code,
        }
        with loading(name):
            _check_one_kind(Path(name))
            if find_adapter_config_file(name, revision=revision) is None:
                return load_model(name, **options)
            base = PeftConfig.from_pretrained(name, revision=revision).base_model_name_or_path
            config = AutoConfig.from_pretrained(base or name, trust_remote_code=self.trust_remote_code)

            class AdaptedModel(AutoPeftModelForCausalLM):
                _target_class = class_of(config)

            return AdaptedModel.from_pretrained(name, **options).merge_and_unload()


@dataclass
class EvalModel(PlainModel):
    """
    Options that name the model to evaluate, and the model before unlearning.

    Args:
        base_model_name_or_path (`str`, *optional*): The model before unlearning.
    """

    base_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "The model before unlearning, for KL(base || model) on unseen text (unseen, else holdout, else "
            "retain rows) and the share of weights changed. Both models are in memory at once."
        },
    )

    def load_base(self, model: PreTrainedModel) -> PreTrainedModel | None:
        """Load the model before unlearning, if one is named, onto the device and in the dtype of `model`."""
        if self.base_model_name_or_path is None:
            return None
        base = self._pretrained(self.base_model_name_or_path, model.dtype, "main")
        return base.to(model.device)  # pyright: ignore[reportArgumentType]

    def adapter_fingerprint(self) -> str | None:
        """[`~masks.fingerprint.adapter_fingerprint`] of adapters in a folder; `None` of a whole model."""
        path = Path(require_model(self), ADAPTER_WEIGHTS)
        return fingerprint_of(TensorFile(path), torch.bfloat16) if path.is_file() else None

    def saved_fingerprint(self) -> str | None:
        """Fingerprint of the weights in a folder, as they were saved; `None` where that is not known."""
        manifest = Manifest.read(Path(require_model(self)))
        return None if manifest is None else manifest.fingerprint


def _check_one_kind(folder: Path) -> None:
    has_model = any((folder / name).is_file() for name in (SAFETENSORS_SINGLE_FILE, SAFETENSORS_INDEX_FILE))
    if has_model and (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"it holds a model and adapters ({ADAPTER_CONFIG}), of which transformers would make a third model; move away those "
            "that are not meant."
        )
