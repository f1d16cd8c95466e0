"""`wagle adapter DELTA [BASE]`: writes a delta as an adapter that PEFT loads without this package."""

from ..deltas.peft_export import REQUIRES, export_adapter
from .delta import BASE_HELP, DELTA_HELP, DeltaSource, delta_and_base
from .output import Output, key_value_table
from .parser import WagleParser


def run(argv: list[str], command: str) -> Output:
    parser = WagleParser([DeltaSource], prog=f"wagle {command}", allow_abbrev=False)
    parser.add_argument("delta", metavar="DELTA", help=DELTA_HELP)
    parser.add_argument("base", metavar="BASE", nargs="?", help=BASE_HELP)
    args, names = parser.parse_args_and_config(argv)
    exported = export_adapter(*delta_and_base(args, names), args.output_dir)
    content = {
        "output_dir": args.output_dir,
        "bytes": exported.num_bytes,
        "weights_changed": exported.num_changed,
        "not_exact": exported.num_inexact,
        "largest_error": exported.largest_error,
        "sparse_layers": len(exported.sparse),
        "whole_layers": len(exported.whole),
        "requires": REQUIRES,
    }
    return Output(content, [key_value_table(f"Adapter: {args.output_dir}", content)])
