"""The tables of `wagle eval`."""

from typing import Any

from rich.table import Table

from ..comparison.runs import attack_label
from ..masks.anatomy import layer_label


def evaluation_tables(model: str, summary: dict[str, Any]) -> list[Table]:
    """Make the tables of aggregates, of the weights changed by layer, and of attacks, if the summary has them."""
    table = Table("metric", "value", title=f"Evaluation of {model}")
    layers = Table("layer", "share", title="Weights changed")
    for name, value in summary.items():
        if not isinstance(value, dict):
            table.add_row(name, f"{value:.4g}")
    for layer, share in summary.get("weights_changed_by_layer", {}).items():
        layers.add_row(layer_label(layer), f"{share:.4g}")
    return [table, *([layers] if layers.row_count else []), *_attack_tables(summary)]


def _attack_tables(summary: dict[str, Any]) -> list[Table]:
    """Make the table of aggregates without and under attack, and the curve of relearning."""
    attacks = summary.get("attacks", {})
    if not attacks:
        return []
    columns = {"clean": summary} | {attack_label(name, values): values for name, values in attacks.items()}
    caption = (
        "After relearning, the forget rows are those that relearning did not train on."
        if "relearn" in attacks
        else None
    )
    table = Table("metric", *columns, title="Under attack", caption=caption)
    for name in summary:
        if any(name in values for values in attacks.values()):
            shown = [f"{values[name]:.4g}" if name in values else "" for values in columns.values()]
            table.add_row(name, *shown)
    if "relearn" not in attacks:
        return [table]
    trained, rest = len(attacks["relearn"]["relearned_rows"]), attacks["relearn"]["rows"]["forget"]
    curve = Table(f"steps on {trained} forget rows", f"forget_prob of the other {rest}", title="Relearning")
    for point in attacks["relearn"]["curve"]:
        curve.add_row(str(point["step"]), f"{point['forget_probability']:.4g}")
    return [table, curve]
