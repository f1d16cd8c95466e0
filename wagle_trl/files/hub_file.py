"""Base class of masks and deltas: one safetensors file, in a folder or in a repository on the Hub."""

import os
import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import HfApi, ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..text import code
from .run_folder import CARD_FILE

_TEMPLATE = Path(__file__).parent.parent / "templates" / "hub_file.md.jinja"
_COMMIT = re.compile("[0-9a-f]{40}")


# Names on the Hub


def is_hub_name(name: str) -> bool:
    """Whether `name` is a valid name of a repository. Any other name is a path and never sent to the Hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.endswith((".safetensors", "\n"))  # older versions of huggingface_hub allow a trailing line break


def full_name(repo_id: str, token: str | None = None) -> str:
    """Add the namespace of the user of the token to `repo_id`, unless it has one."""
    return repo_id if "/" in repo_id else f"{HfApi(token=token).whoami()['name']}/{repo_id}"


@contextmanager
def asking_hub(name: str) -> Iterator[None]:
    """Raise a `FileNotFoundError` that names `name` if the repository cannot be read in this context."""
    try:
        yield
    except (RepositoryNotFoundError, LocalEntryNotFoundError) as error:
        is_refused = isinstance(error, RepositoryNotFoundError)
        reason = "it does not exist, or this token has no access" if is_refused else str(error).split(". ")[0]
        raise FileNotFoundError(
            f"'{name}' is neither a folder here nor a repository of the Hub that can be read ({reason})."
        ) from error


def public_base(
    name: str | None, revision: str | None, base_model: str | None = None, is_local: bool | None = None
) -> tuple[str | None, str | None]:
    """
    Return the public name and revision of a base model, never the path of a local folder.

    Args:
        name (`str`, *optional*), revision (`str`, *optional*): Recorded name and revision.
        base_model (`str`, *optional*): Name of the base model on the Hub. If it differs from the recorded name, the
            recorded revision does not apply to it.
        is_local (`bool`, *optional*): Whether the recorded base model is a folder. By default it is, unless a commit is
            recorded, because a relative path may look like a name on the Hub.
    """
    if base_model is not None and (os.path.exists(base_model) or not is_hub_name(base_model)):
        raise ValueError(f"'{base_model}' is a local path; give the name of the base model on the Hub.")
    if base_model is None and name is not None:
        if is_local is None:
            is_local = os.path.exists(name) or not _COMMIT.fullmatch(revision or "")
        base_model = name if is_hub_name(name) and not is_local else None
    return base_model, revision if base_model == name else None


class HubFile(ModelHubMixin, library_name="wagle-trl"):
    """
    Object that is saved as one file, with the methods of [`~huggingface_hub.ModelHubMixin`].
    """

    file_name: ClassVar[str]

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)  # the mixin would save the arguments in a config.json

    @abstractmethod
    def save(self, path: str | os.PathLike) -> Path:
        """Write the file atomically to `path`, or into `path` if it is a folder."""

    @classmethod
    @abstractmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read and check the file `path`, or the file in the folder `path`."""

    @classmethod
    def path_in(cls, path: str | os.PathLike) -> Path:
        """Return `path` if it is a safetensors file, else the path of the file in the folder `path`."""
        path = Path(path)
        return path if path.suffix == ".safetensors" else path / cls.file_name

    @property
    @abstractmethod
    def selection(self) -> Any:
        """[`WeightMask`] of the weights that the file describes."""

    @abstractmethod
    def public(self, base_model: str | None = None, is_local: bool | None = None) -> Self:
        """
        Copy the object for publication: its mask names the base model as [`public_base`] does.

        Args:
            base_model (`str`, *optional*), is_local (`bool`, *optional*): As in [`public_base`].
        """

    def generate_model_card(self, repo_id: str | None = None, base_model: str | None = None) -> ModelCard:
        """
        Make a card that describes the file and how to load it.

        Args:
            repo_id (`str`, *optional*): Repository of the card.
            base_model (`str`, *optional*): Name of the base model on the Hub, if the recorded one is a folder.
        """
        mask = self.selection
        base = mask.info.public(base_model).base_model
        data = self._hub_mixin_info.model_card_data.to_dict()
        if base:
            data |= {"base_model": base, "base_model_relation": "adapter"}
        return ModelCard.from_template(
            ModelCardData(**data),
            template_path=str(_TEMPLATE),
            is_delta=mask is not self,
            base=base,
            selected=f"{mask.num_selected:,} of the {mask.numel:,} weights in scope ({100 * mask.density:.3g}%)",
            score=None if mask.info.score in (None, "merged") else code(mask.info.score),
            place=repo_id or "path/to/this/folder",
        )

    @classmethod
    def existing(cls, path: str | os.PathLike, noun: str) -> Path:
        """Return [`path_in`], or raise a `FileNotFoundError` that calls the missing file `noun`."""
        path = cls.path_in(path)
        if not path.is_file():
            raise FileNotFoundError(f"No {noun} at {path}; give a {cls.file_name} or a folder that holds one.")
        return path

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """
        Save the file into a folder, which may be the folder of a model, and a card if there is none.

        Args:
            save_directory (`str` or `pathlib.Path`): Folder.
            **kwargs: `push_to_hub`, `repo_id` and arguments of `push_to_hub`, as in
                [`~huggingface_hub.ModelHubMixin.save_pretrained`].
        """
        folder = Path(save_directory)
        self.save(folder)
        if not (folder / CARD_FILE).exists():
            self.generate_model_card(**(kwargs.pop("model_card_kwargs", None) or {})).save(folder / CARD_FILE)
        repo_id = kwargs.pop("repo_id", None) or folder.name
        return self.push_to_hub(repo_id, **kwargs) if kwargs.pop("push_to_hub", False) else None

    def push_to_hub(
        self,
        repo_id: str,
        *,
        base_model: str | None = None,
        token: str | None = None,
        branch: str | None = None,
        **kwargs: Any,
    ) -> str:
        """
        Upload the [`public`] copy of the file, and a card if the repository has none.

        Args:
            repo_id (`str`): Repository, such as `"user/name"`, which is created if needed.
            base_model (`str`, *optional*): Name of the base model on the Hub, if the recorded one is a folder.
            token (`str`, *optional*): As in [`~huggingface_hub.ModelHubMixin.push_to_hub`].
            branch (`str`, *optional*): As in [`~huggingface_hub.ModelHubMixin.push_to_hub`].
            **kwargs: As in [`~huggingface_hub.ModelHubMixin.push_to_hub`].

        Returns:
            `str`: URL of the commit.
        """
        repo_id = full_name(repo_id, token)
        if HfApi(token=token).file_exists(repo_id, CARD_FILE, revision=branch):
            ignored = kwargs.get("ignore_patterns") or []
            kwargs["ignore_patterns"] = [CARD_FILE, *([ignored] if isinstance(ignored, str) else ignored)]
        of_card = {"repo_id": repo_id, "base_model": base_model} | (kwargs.pop("model_card_kwargs", None) or {})
        public = super(HubFile, self.public(base_model))
        return public.push_to_hub(repo_id, token=token, branch=branch, model_card_kwargs=of_card, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """
        Load the file from a repository on the Hub or from a folder.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Repository, or a folder with the file.
            force_download, token, cache_dir, local_files_only, revision (*optional*):
                As in [`~huggingface_hub.hf_hub_download`].
        """
        name = str(pretrained_model_name_or_path)
        if os.path.exists(name) or not is_hub_name(name):
            return cls.load(name)
        with asking_hub(name):
            path = hf_hub_download(
                name,
                cls.file_name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                token=token,
                local_files_only=local_files_only,
            )
        return cls.load(path)
