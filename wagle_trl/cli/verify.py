"""`wagle verify BASE UNLEARNED [MASK]`: do two models differ in nothing but the selected weights? Exit code 0 or 1."""

from dataclasses import dataclass, field

from rich.table import Table

from ..hub import checkpoint_of
from ..mask import WeightMask
from ..verification import Movement, Verification, verify
from .output import Output
from .parser import WagleParser


@dataclass
class VerifyArguments:
    """Of models on the Hub."""

    base_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of BASE on the Hub."})
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
    base, unlearned = checkpoint_of(names.base, args.base_revision), checkpoint_of(names.unlearned, args.revision)
    result = verify(base, unlearned, mask)
    content = {
        "verified": not result.violations,
        "base": names.base,
        "unlearned": names.unlearned,
        "base_rounded_to": result.rounded,
        **result.total.to_dict(),
        "layers": {layer: movement.to_dict() for layer, movement in result.layers.items()},
        "violations": result.violations,
    }
    return Output(content, _tables(result), exit_code=1 if result.violations else 0)


def _tables(result: Verification) -> list[Table | str]:
    table = Table(
        "layer", "weights", "selected", "moved", "of selected", "mean change", "largest", title="Weights that differ"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for layer, movement in result.layers.items():
        table.add_row(layer, *_cells(movement))
    table.add_section()
    table.add_row("all", *_cells(result.total))
    if result.rounded:
        table.caption = f"Weights of the base were rounded to {result.rounded}."
    if not result.violations:
        return [table, "Verified: no weight outside the mask differs."]
    outside = Table("parameter", "weights outside the mask that differ", title="Not as masked")
    for name, count in result.violations.items():
        outside.add_row(name, f"{count:,}")
    return [table, outside, f"FAILED: {sum(result.violations.values()):,} weights outside the mask differ."]


def _cells(movement: Movement) -> list[str]:
    numbers = movement.to_dict()
    share = f"{movement.moved / movement.selected:.1%}" if movement.selected else ""
    counts = [f"{numbers[name]:,}" for name in ("numel", "selected", "moved")]
    return [*counts, share, f"{numbers['mean_change']:.3g}", f"{numbers['max_change']:.3g}"]
