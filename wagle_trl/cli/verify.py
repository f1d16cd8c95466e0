"""`wagle verify BASE UNLEARNED [MASK]`: verifies that two models differ in nothing but the selected weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.table import Table

from ..deltas.verification import Verification, WeightChanges, verify
from ..files.manifest import check_same_run
from ..files.run_folder import MASK_FILE
from ..files.tensor_file import first_few
from ..hub.load import checkpoint_of
from ..masks.anatomy import layer_label
from ..masks.mask import WeightMask
from .output import Output
from .parser import WagleParser

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
        "mask", metavar="MASK", nargs="?", help="Folder, file or Hub name of the mask; by default that in UNLEARNED."
    )
    args, names = parser.parse_args_and_config(argv)
    mask = WeightMask.from_pretrained(names.mask or names.unlearned, revision=None if names.mask else args.revision)
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
