"""Rows of TOFU (arXiv 2401.06121): to forget, to retain and to evaluate."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..files.schemas import Row
from ..text import printable
from .rows import load_rows, read_jsonl, to_dataset

TOFU_HUB_NAME = "locuslab/TOFU"
TOFU_FORGET_ROWS = {"forget01": 40, "forget05": 200, "forget10": 400}
TOFU_RETAIN_SPLIT = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}


def load_tofu(forget: str = "forget10", tofu_dir: str | os.PathLike | None = None) -> tuple[Dataset, Dataset]:
    """
    Load forget and retain rows of TOFU (arXiv 2401.06121).

    Args:
        forget (`str`, *optional*, defaults to `"forget10"`): `"forget01"`, `"forget05"` or `"forget10"`.
        tofu_dir (`str`, *optional*): Folder with `full.jsonl` of `locuslab/TOFU`; by default rows come from the Hub.
    """
    _check_tofu_split(forget)
    if tofu_dir is None:
        return load_rows(f"{TOFU_HUB_NAME}:{forget}"), load_rows(f"{TOFU_HUB_NAME}:{TOFU_RETAIN_SPLIT[forget]}")
    path = Path(tofu_dir) / "full.jsonl"
    rows = read_jsonl(path, Row)
    cut = len(rows) - TOFU_FORGET_ROWS[forget]
    if cut < 1:
        raise ValueError(f"{printable(path)} has {len(rows)} rows, too few for '{forget}' and retain rows.")
    return to_dataset(rows[cut:], path), to_dataset(rows[:cut], path)


def load_tofu_evaluation(
    forget: str = "forget10", tofu_dir: str | os.PathLike | None = None
) -> dict[str, Sequence[Mapping[str, Any]]]:
    """
    Load the sets of rows of the TOFU evaluation, by name. Four sets have paraphrased and perturbed answers. `holdout` is
    about authors that no model was trained on.
    """
    _check_tofu_split(forget)
    files = {
        "forget": f"{forget}_perturbed",
        "retain": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
        "holdout": "holdout10",
    }
    if tofu_dir is None:
        return {name: load_rows(f"{TOFU_HUB_NAME}:{config}").to_list() for name, config in files.items()}
    # The smaller forget sets are the last rows of the largest one
    files["forget"] = "forget10_perturbed"
    rows = {name: read_jsonl(Path(tofu_dir) / f"{file}.jsonl", Row) for name, file in files.items()}
    return {**rows, "forget": rows["forget"][-TOFU_FORGET_ROWS[forget] :]}


def _check_tofu_split(forget: str) -> None:
    if forget not in TOFU_FORGET_ROWS:
        raise ValueError(f"Unknown TOFU split '{forget}'; expected one of {', '.join(TOFU_FORGET_ROWS)}.")
