"""List everything in which two models differ, from the files alone and without a mask."""

from dataclasses import dataclass, field

from tqdm.auto import tqdm

from ..files.checkpoint import Checkpoint
from ..text import printable
from .config_changes import config_changes, other_files
from .verification import WeightChanges, dtype_name, weight_changes

_MAX_SHOWN = 200


@dataclass
class Differences:
    """
    Result of [`differences`].

    Args:
        parameters (`dict[str, WeightChanges]`): Differences by weight tensor that both models have in one shape.
        only_before (`list[str]`), only_after (`list[str]`): Tensors that one model lacks.
        shapes (`dict[str, tuple[str, str]]`): Shapes before and after, where they differ.
        dtypes (`dict[str, tuple[str, str]]`): Dtypes before and after, where they differ.
        load_dtype (`tuple[str, str]`, *optional*): Dtypes in which transformers would load the models, if they differ.
        config_changes (`dict[str, tuple[str, str]]`): As from [`~deltas.config_changes.config_changes`].
        other_files (`list[str]`): Names of tokenizer, generation, template and code files that differ.
    """

    parameters: dict[str, WeightChanges] = field(default_factory=dict)
    only_before: list[str] = field(default_factory=list)
    only_after: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[str, str]] = field(default_factory=dict)
    dtypes: dict[str, tuple[str, str]] = field(default_factory=dict)
    load_dtype: tuple[str, str] | None = None
    config_changes: dict[str, tuple[str, str]] = field(default_factory=dict)
    other_files: list[str] = field(default_factory=list)

    @property
    def changed(self) -> dict[str, WeightChanges]:
        """Those of `parameters` in which a weight differs."""
        return {name: changes for name, changes in self.parameters.items() if changes.outside}

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        alone = self.only_before or self.only_after or self.shapes
        return not (alone or self.changed or self.dtypes or self.load_dtype or self.config_changes or self.other_files)


def differences(before: Checkpoint, after: Checkpoint, *, progress: bool = True) -> Differences:
    """
    Compare two models: every weight bit by bit (as numbers where dtypes differ), configs, tokenizers and other files.

    Args:
        before ([`~files.checkpoint.Checkpoint`]), after ([`~files.checkpoint.Checkpoint`]): The models.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        [`Differences`]: All differences.
    """
    folders = before.folder, after.folder
    old, new = (printable(", ".join(sorted(set(model.load_dtypes.values()))), _MAX_SHOWN) for model in (before, after))
    result = Differences(
        only_before=sorted(before.keys() - after.keys()),
        only_after=sorted(after.keys() - before.keys()),
        load_dtype=None if old == new else (old, new),
        config_changes=config_changes(*folders),
        other_files=other_files(*folders),
    )
    both = [name for name in after if name in before]
    result.shapes = {
        name: (str(before.shape(name)), str(after.shape(name)))
        for name in both
        if before.shape(name) != after.shape(name)
    }
    alike = [name for name in both if name not in result.shapes]
    total = sum(map(after.numel, alike))
    with tqdm(total=total, desc="Comparing", unit="weight", unit_scale=True, disable=not progress) as bar:
        for name in alike:
            result.parameters[name] = weight_changes(before, after, None, name, bar)
            if before.dtype(name) != after.dtype(name):
                result.dtypes[name] = dtype_name(before.dtype(name)), dtype_name(after.dtype(name))
    return result
