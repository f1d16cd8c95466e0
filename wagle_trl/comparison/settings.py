"""Settings of a run: what decides its result, apart from chance."""

import json
from typing import Any

from ..attribution.scores import SCORES
from ..files.schemas import Report
from ..masks.info import MaskInfo


def settings(training: Report) -> dict[str, Any]:
    """
    Collect the settings of a run, flat.

    Args:
        training ([`~files.schemas.Report`]): Content of `wagle_report.json`.

    Returns:
        `dict`: Options under their own names; `objective`, `base_model`, `peft_type`; `mask_score`, `mask_density`,
        `mask_scope`, `mask_exclude`, and of `mask_gamma`, `mask_eps` and `mask_seed` what the score reads. Unknown settings
        are left out.
    """
    options = {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in training.get("options", {}).items()
        if value is not None and not name.startswith("mask_")
    }
    named = {name: training.get(name) for name in ("objective", "base_model", "peft_type")}
    known = {**options, **named, **_mask_settings(training)}
    return {name: value for name, value in known.items() if value is not None}


def _mask_settings(training: Report) -> dict[str, Any]:
    mask = training.get("mask")
    if not mask:
        return {}
    info = mask["info"]
    score = info.get("score")
    read = SCORES[score].scale if score in SCORES else None
    patterns = MaskInfo.from_metadata({name: info[name] for name in ("scope", "exclude") if name in info}, "")
    return {
        "mask_score": score,
        "mask_density": mask["density"],
        "mask_gamma": info.get("gamma") if read == "gamma" else None,
        "mask_eps": info.get("eps") if read == "eps" else None,
        "mask_scope": " ".join(patterns.scope or ()) or None,
        "mask_exclude": " ".join(patterns.exclude or ()) or None,
        "mask_seed": info.get("seed") if score == "random" else None,
    }
