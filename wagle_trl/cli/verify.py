"""
`wagle verify BASE UNLEARNED [MASK]`: verifies that two models differ in nothing but the selected weights. Where there is no
mask, it lists what differs.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from huggingface_hub.errors import EntryNotFoundError
from rich.table import Table

from ..deltas.differences import Differences, differences
from ..deltas.verification import Verification, WeightChanges, verify
from ..files.manifest import check_same_run
from ..files.run_folder import MASK_FILE
from ..files.tensor_file import first_few
from ..hub.load import checkpoint_of
from ..masks.anatomy import layer_label
from ..masks.mask import WeightMask
from ..text import percent
from .output import Output
from .parser import WagleParser

_MAX_ROWS = 30  # of a table without a mask

BASE_REVISION_HELP = (
    "Branch, tag or commit of BASE on the Hub; by default the one that the mask or delta names, if BASE is the base "
    "that it names."
)


@dataclass
class VerifyArguments:
    """Options of models on the Hub."""

    base_revision: str | None = field(default=None, metadata={"help": BASE_REVISION_HELP})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of UNLEARNED on the Hub."})


def run(argv: list[str], command: str) -> Output:
    parser = WagleParser([VerifyArguments], prog=f"wagle {command}", allow_abbrev=False)
    parser.add_argument("base", metavar="BASE", help="The model before: a folder with safetensors, or a Hub name.")
    parser.add_argument("unlearned", metavar="UNLEARNED", help="The model after, in the same forms.")
    parser.add_argument(
        "mask",
        metavar="MASK",
        nargs="?",
        help="Folder, file or Hub name of the mask; by default that in UNLEARNED. "
        "If that folder has none, nothing may differ.",
    )
    args, names = parser.parse_args_and_config(argv)
    mask = _mask_of(names.unlearned, args.revision) if names.mask is None else WeightMask.from_pretrained(names.mask)
    if mask is None:
        return _compare(names.base, names.unlearned, args)
    base_revision = revision_of_base(names.base, args.base_revision, mask)
    base, unlearned = checkpoint_of(names.base, base_revision), checkpoint_of(names.unlearned, args.revision)
    if names.mask is None:
        check_same_run(unlearned.folder, [MASK_FILE])
    result = verify(base, unlearned, mask)
    content = {
        "verified": result.passed,
        "base": names.base,
        "base_revision": base_revision,
        "unlearned": names.unlearned,
        **result.total.to_dict(),
        "layers": {layer: movement.to_dict() for layer, movement in result.layers.items()},
        "violations": result.violations,
        "narrowed": {name: {"before": old, "after": new} for name, (old, new) in result.narrowed.items()},
        "loaded_as": {name: {"saved": own, "declared": other} for name, (own, other) in result.loaded_as.items()},
        "config_changes": {
            key: {"before": before, "after": after} for key, (before, after) in result.config_changes.items()
        },
        "other_files": result.other_files,
    }
    return Output(content, _tables(result), exit_code=0 if result.passed else 1)


def _mask_of(unlearned: str, revision: str | None) -> WeightMask | None:
    """Load the mask in a folder or a repository of a model; `None` where there is none."""
    if os.path.isdir(unlearned) and not WeightMask.path_in(unlearned).is_file():
        return None
    try:
        return WeightMask.from_pretrained(unlearned, revision=revision)
    except EntryNotFoundError:
        return None


def _compare(before: str, after: str, args: VerifyArguments) -> Output:
    """Compare two models of which none has a mask."""
    found = differences(checkpoint_of(before, args.base_revision), checkpoint_of(after, args.revision))
    pairs = {
        "shapes": found.shapes,
        "dtypes": found.dtypes,
        "loaded_as": {} if found.load_dtype is None else {"model": found.load_dtype},
        "config_changes": found.config_changes,
    }
    content = {
        "verified": found.is_same,
        "mask": None,
        "base": before,
        "base_revision": args.base_revision,
        "unlearned": after,
        "differing": {name: _counts(changes) for name, changes in found.changed.items()},
        "only_in_base": found.only_before,
        "only_in_unlearned": found.only_after,
        **{key: {n: {"before": a, "after": b} for n, (a, b) in values.items()} for key, values in pairs.items()},
        "other_files": found.other_files,
    }
    return Output(content, _difference_tables(found, pairs), exit_code=0 if found.is_same else 1)


def _counts(changes: WeightChanges) -> dict[str, int | float]:
    """Number and share of the weights that differ without a mask, and how far they moved."""
    numbers = changes.to_dict()
    share = changes.outside / changes.numel
    sizes = {name: numbers[name] for name in ("non_finite", "mean_change", "max_change")}
    return {"numel": changes.numel, "differing": changes.outside, "share": share} | sizes


def _difference_tables(found: Differences, pairs: Mapping[str, Mapping[str, tuple[str, str]]]) -> list[Table | str]:
    tables: list[Table | str] = []
    if found.changed:
        table = Table("tensor", "weights", "differ", "share", "mean change", "largest", title="Tensors that differ")
        for name, changes in list(found.changed.items())[:_MAX_ROWS]:
            numbers = _counts(changes)
            change = (f"{numbers[key]:.3g}" for key in ("mean_change", "max_change"))
            table.add_row(name, f"{changes.numel:,}", f"{changes.outside:,}", percent(numbers["share"]), *change)
        tables.append(table)
        if len(found.changed) > _MAX_ROWS:
            tables.append(f"And {len(found.changed) - _MAX_ROWS:,} more; --json lists all.")
    for side, names in (("BASE", found.only_before), ("UNLEARNED", found.only_after)):
        tables += [f"Tensors that only {side} has: {first_few(names, limit=12)}."] if names else []
    for title, values in zip(("Shapes", "Dtypes", "Loaded as", "Changes of config.json"), pairs.values(), strict=True):
        shown = {name: " -> ".join(pair) for name, pair in list(values.items())[:_MAX_ROWS]}
        tables += [_pairs(title, ["name", "before -> after"], shown)] if shown else []
    tables += [f"Other files that differ: {first_few(found.other_files, limit=12)}."] if found.other_files else []
    if found.is_same:
        return ["There is no mask, and nothing differs: weights, config, tokenizer and other files are the same."]
    weights = sum(changes.outside for changes in found.changed.values())
    total = sum(changes.numel for changes in found.parameters.values())
    share = f" ({percent(weights / total)})" if total else ""
    return [
        *tables,
        f"DIFFERENT, and there is no mask that says what may differ: {weights:,} of {total:,} weights{share}.",
    ]


def revision_of_base(base: str, given: str | None, mask: WeightMask) -> str | None:
    """Choose the revision of a base: the given one, or the mask's, if the mask names this base."""
    if given is not None or base != mask.info.base_model:
        return given
    return mask.info.known_revision


def _tables(result: Verification) -> list[Table | str]:
    tables: list[Table | str] = [_movements(result)]
    if result.total.non_finite:
        tables.append(f"{result.total.non_finite:,} of the weights after are NaN or infinite.")
    if result.other_files:
        tables.append(
            f"Other files that differ, which does not count here: {first_few(result.other_files, limit=12)}."
        )
    if result.violations:
        tables.append(
            _pairs(
                "Changed outside the mask", ["parameter", "weights outside the mask that differ"], result.violations
            )
        )
    for title, found in (
        ("Narrower dtypes", result.narrowed),
        ("config.json declares another dtype", result.loaded_as),
    ):
        if found:
            tables.append(
                _pairs(title, ["parameter", "dtype"], {name: " -> ".join(pair) for name, pair in found.items()})
            )
    if result.config_changes:
        changes = {key: f"{before} -> {after}" for key, (before, after) in result.config_changes.items()}
        tables.append(_pairs("Changes of config.json", ["key", "before -> after"], changes))
    return [*tables, _verdict(result)]


def _movements(result: Verification) -> Table:
    table = Table(
        "layer", "weights", "selected", "moved", "of selected", "mean change", "largest", title="Weights that differ"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for layer, movement in result.layers.items():
        table.add_row(layer_label(layer), *_cells(movement))
    table.add_section()
    table.add_row("all", *_cells(result.total))
    return table


def _pairs(title: str, columns: list[str], content: Mapping[str, int | str]) -> Table:
    table = Table(*columns, title=title)
    for name, value in content.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else value)
    return table


def _verdict(result: Verification) -> str:
    if result.passed:
        return "Verified: no weight outside the mask differs."
    weights, keys = sum(result.violations.values()), len(result.config_changes)
    failures = [f"{weights:,} weights outside the mask differ"] if weights else []
    failures += [f"dtypes are narrower than the base's (tensors: {len(result.narrowed):,})"] if result.narrowed else []
    failures += (
        [f"config.json declares another dtype (tensors: {len(result.loaded_as):,})"] if result.loaded_as else []
    )
    failures += [f"config.json describes another model (keys: {keys:,})"] if keys else []
    return f"FAILED: {'; '.join(failures)}."


def _cells(movement: WeightChanges) -> list[str]:
    numbers = movement.to_dict()
    share = f"{movement.moved / movement.selected:.1%}" if movement.selected else ""
    counts = [f"{numbers[name]:,}" for name in ("numel", "selected", "moved")]
    return [*counts, share, f"{numbers['mean_change']:.3g}", f"{numbers['max_change']:.3g}"]
