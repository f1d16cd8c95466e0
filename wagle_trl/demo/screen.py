"""What the demo shows at its end, on one screen."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ..text import percent
from .run import FORGOTTEN, NUM_PEOPLE, Forgetting
from .worlds import WORLDS

_NEAR = 0.02  # difference between answer probabilities that one seed cannot tell apart


def screen(done: Sequence[Forgetting], folder: str) -> list[Table | str]:
    """
    Lay out the results.

    Args:
        done (`list[Forgetting]`): Runs of [`~wagle_trl.demo.run.run_demo`].
        folder (`str`): Its folder.

    Returns:
        `list`: Tables and texts to print.
    """
    by_world = {world: {run.name: run for run in done if run.world == world} for world in WORLDS}
    return [
        *(comparison_table(name, runs) for name, runs in by_world.items()),
        *(_bought(name, runs) for name, runs in by_world.items()),
        _not_bought(by_world),
        _examples(by_world),
        _closing(folder),
    ]


def comparison_table(world: str, runs: Mapping[str, Forgetting]) -> Table:
    """Make the table of a world: what each run was given, and what it forgot and kept."""
    first = next(iter(runs.values()))
    before = first.numbers()
    table = Table(
        title=f"{WORLDS[world].title}: {len(first.answers)} answers to forget, of {NUM_PEOPLE} people",
        caption=f"Answer probability of the saved weights; last column: where the forget rows passed {FORGOTTEN}",
    )
    for column in (
        "run",
        "rate",
        "retain weight",
        "steps",
        "forget",
        "retain",
        "unseen retain",
        f"unseen at {FORGOTTEN}",
    ):
        table.add_column(column, justify="left" if column == "run" else "right")
    sets = ("forget", "retain", "unseen_retain")
    table.add_row("base", "", "", "0", *(f"{before[f'{name}_before']:.3f}" for name in sets), "")
    for run in runs.values():
        numbers = run.numbers()
        depth = numbers["unseen_retain_at_depth"]
        table.add_row(
            run.name,
            f"{run.arm.learning_rate:g}",
            f"{run.arm.retain_weight:g}",
            str(numbers["steps"]),
            *(f"{numbers[f'{name}_probability']:.3f}" for name in sets),
            "not reached" if depth is None else f"{depth:.3f}",
        )
    return table


def _bought(world: str, runs: Mapping[str, Forgetting]) -> str:
    """Say what the mask saves against training all weights, and what it proves."""
    masked, dense = runs["masked"], runs["dense"]
    numbers, proof = masked.numbers(), masked.proof
    assert proof is not None  # the arm has a mask
    total = proof.total
    outcome = f"all {total.numel - total.selected:,} others are bit-identical" if proof.passed else "VERIFY FAILED"
    return (
        f"The mask, {world}: optimizer state {_megabytes(masked.optimizer_bytes)} instead of "
        f"{_megabytes(dense.optimizer_bytes)}; a delta of {_megabytes(numbers['delta_bytes'])} instead of a model of "
        f"{_megabytes(numbers['model_bytes'])}; {total.moved:,} weights ({percent(total.moved / total.numel)}) moved, "
        f"{outcome}."
    )


def _not_bought(by_world: Mapping[str, Mapping[str, Forgetting]]) -> str:
    """Compare what the masked and the dense run kept at the same depth of forgetting, whichever is better."""
    parts = []
    for world, runs in by_world.items():
        kept = {name: run.numbers()["unseen_retain_at_depth"] for name, run in runs.items()}
        masked, others = kept.pop("masked"), kept
        if masked is None or None in others.values():
            parts.append(f"{world}: not every run forgot")
            continue
        compared = [
            f"{'as much as' if abs(masked - value) < _NEAR else 'more than' if masked > value else 'less than'} {name}"
            for name, value in others.items()
        ]
        parts.append(f"{world}: the mask keeps {' and '.join(compared)}")
    return (
        f"At the same depth of forgetting ({FORGOTTEN}), each with options that `wagle tune npo` chose for it: "
        f"{'; '.join(parts)}. One small model and one seed: README and STUDY.md have more."
    )


def _examples(by_world: Mapping[str, Mapping[str, Forgetting]]) -> str:
    """Quote an answer of each world, before and after."""
    quotes = []
    for runs in by_world.values():
        record: dict[str, Any] = runs["masked"].answers[0]
        question = record["question"].removeprefix("Question: ").removesuffix("\nAnswer:")
        quotes.append(f"  {question}  before: {record['answer'].strip()}  after: {record['generated'].strip()}")
    return "\n".join(quotes)


def _closing(folder: str) -> str:
    world, folder = next(iter(WORLDS)), shlex.quote(folder)
    rows = " ".join(
        f"--{name}_dataset {folder}/{world}/{file}.jsonl"
        for name, file in (("forget", "forget"), ("retain", "retain"), ("unseen", "unseen_retain"))
    )
    runs = " ".join(f"{folder}/{world}/{arm}" for arm in WORLDS[world].arms)
    return (
        f"Curves: {folder}/{world}/curves.png and so on. Compare, prove, and unlearn yourself, with the defaults:\n"
        f"wagle report {runs}\n"
        f"wagle verify {folder}/{world}/base {folder}/{world}/masked\n"
        f"wagle npo --model_name_or_path {folder}/{world}/base {rows} --output_dir {folder}/yours"
    )


def _megabytes(count: int | None) -> str:
    return "none" if count is None else f"{count / 1e6:.2f} MB"
