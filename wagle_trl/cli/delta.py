"""`wagle delta`, `apply`, `undo`, `merge`: the changes of unlearning as one small file."""

import os
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from ..deltas.delta import SparseDelta
from ..deltas.merging import MergeResult, merge_deltas
from ..deltas.on_disk import apply_to_folder, delta_between, undo_to_folder
from ..files.atomic import check_writable
from ..files.checkpoint import Checkpoint
from ..files.run_folder import DELTA_FILE
from ..hub.load import base_of, checkpoint_of, require_base
from ..masks.anatomy import layer_label, layer_of
from ..masks.mask import WeightMask
from .output import Output, key_value_table
from .parser import WagleParser
from .verify import BASE_REVISION_HELP, revision_of_base

DELTA_HELP = "Folder, file or Hub name of a delta."
BASE_HELP = "Base of the delta: a folder with safetensors, or a Hub name; by default the one that the delta names."


@dataclass
class NewFolder:
    """Option that names the folder of a new model."""

    output_dir: str = field(metadata={"help": "Folder to create; nothing is overwritten."})


@dataclass
class DeltaSource(NewFolder):
    """Options that name a new folder, and the revisions of a delta and its base on the Hub."""

    base_revision: str | None = field(default=None, metadata={"help": BASE_REVISION_HELP})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of DELTA on the Hub."})


@dataclass
class UndoArguments(NewFolder):
    """Options that name a new folder, and the revision of UNLEARNED."""

    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of UNLEARNED on the Hub."})


@dataclass
class DeltaArguments:
    """Options of a new delta."""

    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for wagle_delta.safetensors; by default UNLEARNED. --undo requires another one."},
    )
    base_revision: str | None = field(default=None, metadata={"help": BASE_REVISION_HELP})
    undo: bool = field(
        default=False,
        metadata={
            "help": "Also save the old values, for `wagle undo`. They hold what was forgotten: do not publish them."
        },
    )


@dataclass
class MergeArguments:
    """Options of merging."""

    output_dir: str = field(
        default="wagle-merged",
        metadata={"help": "Folder to create for the merged delta and its mask; nothing is overwritten."},
    )
    weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "One positive number per delta. A weight to which deltas give different values becomes their weighted "
            "mean. By default the last delta wins. Give the deltas first: `wagle merge A B --weights 1 2`."
        },
    )


def run(argv: list[str], command: str) -> Output:
    return {"delta": _delta, "apply": _apply, "undo": _undo, "merge": _merge}[command](argv)


def _delta(argv: list[str]) -> Output:
    parser = WagleParser([DeltaArguments], prog="wagle delta", allow_abbrev=False)
    parser.add_argument("base", metavar="BASE", help="The model before: a folder with safetensors, or a Hub name.")
    parser.add_argument("unlearned", metavar="UNLEARNED", help="Folder of the model after.")
    parser.add_argument(
        "mask", metavar="MASK", nargs="?", help="Folder, file or Hub name of the mask; by default that in UNLEARNED."
    )
    args, names = parser.parse_args_and_config(argv)
    if args.undo and args.output_dir is None:
        parser.error("--undo needs --output_dir: old values hold what was forgotten, and UNLEARNED may be published")
    folder = args.output_dir or names.unlearned
    mask = WeightMask.from_pretrained(names.mask or names.unlearned)
    base = checkpoint_of(names.base, revision_of_base(names.base, args.base_revision, mask))
    unlearned = Checkpoint(names.unlearned)
    _check_new_folder(folder)
    delta = delta_between(base, unlearned, mask, undo=args.undo)
    return _delta_output(delta, folder, os.path.getsize(delta.save(folder)))


def _apply(argv: list[str]) -> Output:
    parser = WagleParser([DeltaSource], prog="wagle apply", allow_abbrev=False)
    parser.add_argument("delta", metavar="DELTA", help=DELTA_HELP)
    parser.add_argument("base", metavar="BASE", nargs="?", help=BASE_HELP)
    args, names = parser.parse_args_and_config(argv)
    delta, base = delta_and_base(args, names)
    return _model_output(delta, base, apply_to_folder(delta, base, args.output_dir))


def delta_and_base(args: DeltaSource, names: Namespace) -> tuple[SparseDelta, Checkpoint]:
    """Open the delta and the base of a command line with DELTA and BASE."""
    delta = SparseDelta.from_pretrained(names.delta, revision=args.revision)
    if args.base_revision is None:
        return delta, base_of(delta, names.base)
    return delta, checkpoint_of(names.base or require_base(delta), args.base_revision)


def _undo(argv: list[str]) -> Output:
    parser = WagleParser([UndoArguments], prog="wagle undo", allow_abbrev=False)
    parser.add_argument(
        "delta", metavar="DELTA", help=f"{DELTA_HELP} It must hold the old values, see `wagle delta --undo`."
    )
    parser.add_argument(
        "unlearned",
        metavar="UNLEARNED",
        help="The model that the delta made: a folder with safetensors, or a Hub name.",
    )
    args, names = parser.parse_args_and_config(argv)
    delta = SparseDelta.from_pretrained(names.delta)
    unlearned = checkpoint_of(names.unlearned, args.revision)
    return _model_output(delta, unlearned, undo_to_folder(delta, unlearned, args.output_dir))


def _merge(argv: list[str]) -> Output:
    parser = WagleParser([MergeArguments], prog="wagle merge", allow_abbrev=False)
    parser.add_argument("deltas", metavar="DELTA", nargs="+", help=f"{DELTA_HELP} All are of one base.")
    args, names = _parsed_merge(parser, argv)
    deltas = [SparseDelta.from_pretrained(name) for name in names.deltas]
    _check_new_folder(args.output_dir)
    merged = merge_deltas(deltas, args.weights)
    size = os.path.getsize(merged.save(args.output_dir) / DELTA_FILE)
    output = _delta_output(merged.delta, args.output_dir, size)
    counts = {"shared": sum(merged.shared.values()), "conflicts": sum(merged.conflicts.values())}
    output.content |= counts | {"conflicts_by_parameter": {k: v for k, v in merged.conflicts.items() if v}}
    if len(deltas) == 1:  # the others were revoked
        return output
    rule = "the last delta wins" if args.weights is None else "their weighted mean is taken"
    overlap = f"{counts['shared']:,} weights are selected by several deltas; for {counts['conflicts']:,} they differ: {rule}."
    return Output(output.content, [*output.tables, *([_overlap_table(merged)] if counts["shared"] else []), overlap])


def _parsed_merge(parser: WagleParser, argv: list[str]) -> tuple[MergeArguments, Namespace]:
    try:
        return parser.parse_args_and_config(argv)
    except ValueError as error:
        if "--weights" not in argv:
            raise
        raise ValueError(f"{error}; give the deltas first: wagle merge A B --weights 1 2") from error


def _check_new_folder(folder: str) -> None:
    """Refuse a folder that could not be written, without creating it: later refusals leave no folder."""
    path = Path(folder)
    check_writable(str(next(place for place in (path, *path.absolute().parents) if place.exists())))


def _overlap_table(merged: MergeResult) -> Table:
    """Count the weights that several deltas select, layer by layer."""
    counts: dict[str, list[int]] = {}
    for name, shared in merged.shared.items():
        total = counts.setdefault(layer_of(name), [0, 0])
        total[0] += shared
        total[1] += merged.conflicts[name]
    table = Table("layer", "selected by several", "given different values", title="Overlap of the deltas")
    for layer, (shared, conflicts) in counts.items():
        table.add_row(layer_label(layer), f"{shared:,}", f"{conflicts:,}")
    return table


def _delta_output(delta: SparseDelta, folder: str, size: int) -> Output:
    content = _delta_facts(delta) | {"output_dir": folder, "bytes": size}
    return Output(content, [key_value_table(f"Delta: {folder}", content)])


def _model_output(delta: SparseDelta, source: Checkpoint, folder: Path) -> Output:
    content = _delta_facts(delta) | {"output_dir": str(folder)}
    messages = [f"Not copied from {source.folder}: {', '.join(source.left_out)}."] if source.left_out else []
    return Output(content | {"left_out": source.left_out}, [key_value_table(f"Model: {folder}", content), *messages])


def _delta_facts(delta: SparseDelta) -> dict[str, Any]:
    return {
        "base_model": delta.base_model,
        "num_selected": delta.num_selected,
        "dtype": str(delta.dtype).removeprefix("torch."),
        "can_be_undone": delta.old is not None,
    }
