"""What runs have in common that differ in nothing but the seed, and what tells groups of them apart."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from .runs import Run

SEEDS = ("seed", "data_seed", "mask_seed")
# Settings in the order in which the names of groups say them, before all others
_FIRST = ("objective", "trained", "mask_density", "learning_rate", "retain_weight")


def common_settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """
    Collect the settings of each run without its seed: runs that differ in nothing but the seed have equal ones.

    A study may have a base model and rows for each seed, such as `seed-1/base`. The seed in such a name becomes `*`, unless
    runs of other seeds have the same base model or rows.
    """
    seeds: dict[tuple[str, str], set[Any]] = defaultdict(set)
    for run in runs:
        for kind, (name, _) in _origins(run).items():
            seeds[kind, name].add(run.seed)
    found = []
    for run in runs:
        common = {name: value for name, value in run.settings.items() if name not in SEEDS}
        if "mask_density" in common:  # which differs in its last digits between models of other sizes
            common["mask_density"] = float(f"{common['mask_density']:.3g}")
        common |= {
            name: value for name, value in (run.training.get("tokenization") or {}).items() if value is not None
        }
        common["calls of train"] = run.history.num_calls
        common["trained"] = common.get("mask_score") or common.get("peft_type") or "dense"
        for kind, (name, content) in _origins(run).items():
            varied = re.sub(rf"(?<!\d){re.escape(str(run.seed))}(?!\d)", "*", name)
            common[kind] = varied if len(seeds[kind, name]) == 1 else name
            common[f"{kind}, content"] = content if common[kind] == name else ""
        found.append(common)
    return found


def _origins(run: Run) -> dict[str, tuple[str, str]]:
    """Name what the run started from, and what tells contents of one name apart, as far as the report says."""
    training = run.training
    mask = training.get("mask") or {"info": {}}
    weights = [training.get("base_revision"), mask["info"].get("fingerprint")]
    origins = {"base_model": (training.get("base_model") or "", json.dumps(weights))}
    for name, rows in training.get("data", {}).items():
        parts = [rows.get(part) for part in ("source", "config", "split")]
        content = [rows["rows"], rows.get("revision"), rows.get("sha256")]  # keyed digests cannot be compared
        origins[f"{name} rows"] = (" ".join(filter(None, parts)), json.dumps(content))
    return origins


def distinct_names(groups: Sequence[dict[str, Any]]) -> list[str]:
    """
    Name groups of runs by the settings that tell them apart, and no others.

    Args:
        groups (`list[dict]`): Settings of each group, see [`common_settings`].
    """
    names = [*_FIRST, *dict.fromkeys(name for group in groups for name in group if name not in _FIRST)]
    told: list[tuple[str, ...]] = [() for _ in groups]
    for name in names:
        values = [group.get(name) for group in groups]
        alike = defaultdict(set)
        for parts, value in zip(told, values, strict=True):
            alike[parts].add(value)
        told = [
            (*parts, _said(name, value)) if len(alike[parts]) > 1 else parts
            for parts, value in zip(told, values, strict=True)
        ]
    return [", ".join(parts) or f"{group.get('objective')}, {group['trained']}" for parts, group in zip(told, groups)]


def _said(name: str, value: Any) -> str:
    if name in ("objective", "trained"):
        return str(value)
    shown = f"{value:.3g}" if isinstance(value, float) else "/".join(PurePosixPath(str(value)).parts[-2:])
    return f"{name.removeprefix('mask_').replace('_', ' ')} {'default' if value is None else shown}"
