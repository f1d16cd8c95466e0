"""What masks and deltas have in common: one safetensors file, in a folder or in a repository of the Hub."""

import os
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from huggingface_hub import HfApi, ModelHubMixin, hf_hub_download


class HubFile(ModelHubMixin, library_name="wagle-trl"):
    """
    An object that is one file, published and loaded by the methods that users know from
    [`~huggingface_hub.ModelHubMixin`].
    """

    file_name: ClassVar[str]

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)  # the mixin would keep the arguments for a config.json

    @abstractmethod
    def save(self, path: str | os.PathLike) -> Path:
        """Write the file atomically to `path`, or into it, if it is a folder."""

    @classmethod
    @abstractmethod
    def load(cls, path: str | os.PathLike):
        """Read and check a file, or the one in a folder."""

    @classmethod
    def path_in(cls, path: str | os.PathLike) -> Path:
        """`path`, if it is a safetensors file, or that of the file in the folder `path`."""
        path = Path(path)
        return path if path.suffix == ".safetensors" else path / cls.file_name

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> str | None:
        """
        Save the file, and a card if there is none, into a folder; it may be that of a model.

        Args:
            save_directory (`str` or `pathlib.Path`): The folder.
            **kwargs: `push_to_hub`, `repo_id` and arguments of `push_to_hub`, as in
                [`~huggingface_hub.ModelHubMixin.save_pretrained`].
        """
        folder = Path(save_directory)
        self.save(folder)
        if not (folder / "README.md").exists():
            self.generate_model_card(**(kwargs.pop("model_card_kwargs", None) or {})).save(folder / "README.md")
        repo_id = kwargs.pop("repo_id", None) or folder.name
        return self.push_to_hub(repo_id, **kwargs) if kwargs.pop("push_to_hub", False) else None

    def push_to_hub(self, repo_id: str, *, token: str | None = None, branch: str | None = None, **kwargs) -> str:
        """
        Upload the file, and a card if the repository has none.

        Args:
            repo_id (`str`): Repository, such as `"user/name"`; made if need be.
            token (`str`, *optional*), branch (`str`, *optional*), **kwargs:
                As in [`~huggingface_hub.ModelHubMixin.push_to_hub`].

        Returns:
            `str`: URL of the commit.
        """
        if HfApi(token=token).file_exists(repo_id, "README.md", revision=branch):
            kwargs.setdefault("ignore_patterns", "README.md")
        return super().push_to_hub(repo_id, token=token, branch=branch, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ):
        """
        Load the file from a repository of the Hub, or from a folder.

        Args:
            pretrained_model_name_or_path (`str` or `pathlib.Path`): Repository, or a folder that holds the file.
            force_download, token, cache_dir, local_files_only, revision (*optional*):
                As in [`~huggingface_hub.hf_hub_download`].
        """
        if os.path.exists(pretrained_model_name_or_path) or os.path.isabs(pretrained_model_name_or_path):
            return cls.load(pretrained_model_name_or_path)
        path = hf_hub_download(
            str(pretrained_model_name_or_path),
            cls.file_name,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            token=token,
            local_files_only=local_files_only,
        )
        return cls.load(path)
