"""Tables and figures of the study, from its raw rows alone."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from wagle_trl.evaluation.matched import matched
from wagle_trl.files import atomic_path

FOLDER = Path(__file__).parent
TEXT = FOLDER / "STUDY.md"
FIGURES = FOLDER / "results" / "study"
LEVELS = (0.3, 0.1)
# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TITLES = {"npo": "NPO", "graddiff": "GradDiff"}
SHOWN_WITH_BETA = {("fisher_ratio", 0.05, "blocks"), ("dense", 1.0, "all")}
BETAS = {"npo-beta-0.02": "NPO, beta 0.02", "npo-beta-0.5": "NPO, beta 0.5"}


class Case(NamedTuple):
    """What a group of rows has in common but for the learning rate and the seed."""

    objective: str
    score: str
    density: float
    scope: str

    @property
    def label(self) -> str:
        where = "" if self.scope == "blocks" else ", all weights"
        if self.score == "dense":
            return "dense" if self.scope == "all" else "dense, blocks only"
        return f"{self.score} {self.density:.0%}{where}"


class Interval(NamedTuple):
    """Mean and half the width of a 95 % t-interval; the width is NaN with one value."""

    mean: float
    half: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Interval":
        values = np.array(list(values), dtype=float)
        half = np.nan
        if len(values) > 1:
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        return cls(values.mean(), half, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if np.isnan(self.half) else f"{self.mean:.3f} ± {self.half:.3f}"


def case_of(row: dict) -> Case:
    return Case(row["objective"], row["score"], row["density"], row["scope"])


def picked(rows: list[dict]) -> dict[Case, list[dict]]:
    """
    The rows of every case at the learning rate that keeps most of the seen retain rows at 0.1 on seed 0; by seed. A
    case whose runs never forgot so much has none.
    """
    cases = defaultdict(list)
    for row in rows:
        cases[case_of(row)].append(row)
    chosen = {}
    for case, members in cases.items():
        kept = {
            r["learning_rate"]: at["retain"]
            for r in members
            if r["seed"] == 0 and (at := matched(r["trajectory"], 0.1))
        }
        rate = max(kept, key=kept.get, default=None)
        chosen[case] = sorted((r for r in members if r["learning_rate"] == rate), key=lambda r: r["seed"])
    return {case: rows for case, rows in chosen.items() if not case.objective.endswith("-100-steps")}


def kept_at(rows: Iterable[dict], level: float, name: str = "unseen_retain") -> list[float]:
    """A set's probability at a level of forgetting, of the rows that reach it."""
    found = (matched(row["trajectory"], level) for row in rows)
    return [at[name] for at in found if at is not None]


# Tables


def markdown(header: list[str], body: list[list]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def main_table(chosen: dict[Case, list[dict]]) -> str:
    """Cases with several seeds: clean, and after attacks."""
    header = [
        "objective",
        "mask",
        "rate",
        "unseen at 0.3",
        "unseen at 0.1",
        "relearned",
        "unseen, relearned",
        "paraphrase",
    ]
    body = []
    for case, rows in sorted(chosen.items(), key=lambda item: _order(item)):
        if len(rows) < 2:
            continue
        attacked = [row for row in rows if "relearn" in row]
        cells = [Interval.of(kept_at(rows, level)) for level in LEVELS]
        cells += [Interval.of(row["relearn"]["forget"][-1] for row in attacked)] if attacked else [""]
        cells += [Interval.of(row["relearn"]["unseen_retain"] for row in attacked)] if attacked else [""]
        cells += [Interval.of(row["end"]["paraphrase"] for row in attacked)] if attacked else [""]
        body.append([TITLES[case.objective], case.label, f"{rows[0]['learning_rate']:g}", *cells])
    return markdown(header, body)


def _order(item) -> tuple:
    case, rows = item
    values = kept_at(rows, 0.1)
    return (case.objective != "npo", -np.mean(values) if values else 1.0)


def paired_table(chosen: dict[Case, list[dict]]) -> str:
    """What fisher_ratio keeps more of the unseen rows than its controls, seed by seed, at forgetting 0.1."""
    header = [
        "objective",
        "fisher_ratio 5% against",
        "difference at 0.1",
        "intervals disjoint",
        "gap after relearning",
    ]
    body = []
    for objective in TITLES:
        ours = chosen.get(Case(objective, "fisher_ratio", 0.05, "blocks"), [])
        for case, rows in chosen.items():
            if (
                case.objective != objective
                or len(rows) < 2
                or rows is ours
                or case.scope == "all" != (case.score == "dense")
            ):
                continue
            body.append([TITLES[objective], case.label, *_against(ours, rows)])
    return markdown(header, body)


def _against(ours: list[dict], others: list[dict]) -> list:
    pairs = [(a, b) for a in ours for b in others if a["seed"] == b["seed"]]
    at = [(kept_at([a], 0.1), kept_at([b], 0.1)) for a, b in pairs]
    at = [(a[0], b[0]) for a, b in at if a and b]
    first, second = (Interval.of(values) for values in zip(*at))
    disjoint = abs(first.mean - second.mean) > first.half + second.half
    gaps = [_gap(a) - _gap(b) for a, b in pairs if "relearn" in a and "relearn" in b]
    return [Interval.of(a - b for a, b in at), "yes" if disjoint else "no", Interval.of(gaps) if gaps else ""]


def _gap(row: dict) -> float:
    """What is left of the unseen rows above what came back of the forgotten ones."""
    return row["relearn"]["unseen_retain"] - row["relearn"]["forget"][-1]


def screening_table(chosen: dict[Case, list[dict]], wanted) -> str:
    """Seed 0 of the cases that `wanted` accepts, best first."""
    header = ["objective", "mask", "rate", "step at 0.1", "seen at 0.1", "unseen at 0.3", "unseen at 0.1"]
    body, names = [], TITLES | BETAS
    for case, rows in sorted(chosen.items(), key=_order):
        if not wanted(case):
            continue
        if not rows:
            body.append([names[case.objective], case.label, *["not reached"] * 5])
            continue
        row = rows[0]
        at = matched(row["trajectory"], 0.1)
        kept = [
            f"{at['step']:.0f}",
            f"{at['retain']:.3f}",
            f"{kept_at([row], 0.3)[0]:.3f}",
            f"{at['unseen_retain']:.3f}",
        ]
        body.append([names[case.objective], case.label, f"{row['learning_rate']:g}", *kept])
    return markdown(header, body)


def world_table(worlds: list[dict]) -> str:
    """What the models know before unlearning, and what a model knows that never saw the forget rows."""
    names = ("forget", "paraphrase", "unseen_retain", "forget_exact_memorization", "forget_extraction_strength")
    body = [
        [w["seed"], kind, *(f"{w[kind][name]:.3f}" for name in names)] for w in worlds for kind in ("base", "oracle")
    ]
    header = ["seed", "model", "forget", "paraphrase", "unseen retain", "exact memorization", "extraction strength"]
    return markdown(header, body)


def anatomy_table(anatomies: list[dict]) -> str:
    """Where the selected weights are."""
    header = ["mask", "embedding", "LM head", "blocks", "of embedding and head: rows of forget-only tokens"]
    body = []
    for a in anatomies:
        inside = a["in_rows_of_forget_only_tokens"]
        shares = [f"{a[name]:.1%}" for name in ("embedding", "lm_head", "blocks")]
        label = Case("npo", a["score"], a["density"], a["scope"]).label
        body.append([label, *shares, "" if inside is None else f"{inside:.1%}"])
    return markdown(header, body)


def lasting_table(rows: list[dict]) -> str:
    """Runs that go on for 100 steps: what the retain term mends while the forget rows stay forgotten."""
    cases = defaultdict(list)
    for row in rows:
        if row["objective"].endswith("-100-steps"):
            cases[case_of(row)].append(row)
    header = ["objective", "mask", "rate", "seeds", "forget at the end", "unseen at the end", "relearned"]
    body = []
    for case, members in cases.items():
        ends = [[row["trajectory"][name][-1] for row in members] for name in ("forget", "unseen_retain")]
        relearned = [row["relearn"]["forget"][-1] for row in members if "relearn" in row]
        cells = [len(members), *map(Interval.of, ends), Interval.of(relearned) if relearned else ""]
        title = TITLES[case.objective.removesuffix("-100-steps")]
        body.append([title, case.label, f"{members[0]['learning_rate']:g}", *cells])
    return markdown(header, body)


# Figures


def trade_off(chosen: dict[Case, list[dict]], path: Path) -> None:
    """Unseen retain over forget probability, a line a case, its seeds thin."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    labels = sorted({case.label for case, rows in chosen.items() if len(rows) > 1})
    for axis, objective in zip(axes, TITLES):
        for case, rows in chosen.items():
            if case.objective == objective and len(rows) > 1:
                _curves(axis, rows, COLOURS[labels.index(case.label)], case.label)
        axis.set(title=TITLES[objective], xlabel="forget probability", xlim=(1, 0))
        axis.axvline(0.1, color="0.7", linewidth=0.8, zorder=0)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("unseen retain probability")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    _save(figure, path)


def _curves(axis, rows: list[dict], colour: str, label: str) -> None:
    grid = np.linspace(0.95, 0.1, 50)
    curves = []
    for row in rows:
        curve = [np.nan if (at := matched(row["trajectory"], x)) is None else at["unseen_retain"] for x in grid]
        axis.plot(grid, curve, color=colour, linewidth=0.6, alpha=0.5)
        curves.append(curve)
    axis.plot(grid, np.nanmean(curves, axis=0), color=colour, linewidth=2, label=label)


def relearning(chosen: dict[Case, list[dict]], path: Path) -> None:
    """Forget probability over relearning steps, mean of the seeds."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    labels = sorted({case.label for case, rows in chosen.items() if len(rows) > 1})
    for axis, objective in zip(axes, TITLES):
        for case, rows in chosen.items():
            attacked = [row["relearn"] for row in rows if "relearn" in row]
            if case.objective == objective and len(attacked) > 1:
                curve = np.mean([a["forget"] for a in attacked], axis=0)
                axis.plot(
                    attacked[0]["step"], curve, marker="o", color=COLOURS[labels.index(case.label)], label=case.label
                )
        axis.set(title=TITLES[objective], xlabel="relearning steps", ylim=(0, 1))
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("forget probability of rows not relearned")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    _save(figure, path)


def scores(chosen: dict[Case, list[dict]], path: Path) -> None:
    """Unseen retain probability at forgetting 0.1 of every case, seed 0."""
    cases = [(case, rows[0]) for case, rows in sorted(chosen.items(), key=_order) if rows and case.objective == "npo"]
    figure = Figure(figsize=(7.5, 1 + 0.24 * len(cases)), layout="constrained")
    axis = figure.subplots()
    for place, (case, row) in enumerate(cases):
        control = case.score in ("random", "dense")
        axis.plot(kept_at([row], 0.1), [place], "o", color=COLOURS[1] if control else COLOURS[0])
    axis.set_yticks(range(len(cases)), [case.label for case, _ in cases], fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="unseen retain probability where the forget probability first reaches 0.1", title="NPO, seed 0")
    axis.grid(alpha=0.25)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


# All of it


def write_report(rows: list[dict], worlds: list[dict], anatomies: list[dict]) -> None:
    """Put the tables between their marks in STUDY.md, and draw the figures."""
    chosen = picked(rows)
    tables = {
        "lasting": lasting_table(rows),
        "worlds": world_table(worlds),
        "anatomy": anatomy_table(anatomies),
        "main": main_table(chosen),
        "paired": paired_table(chosen),
        "scores": screening_table(chosen, lambda case: case.objective in TITLES and case.density in (0.05, 1.0)),
        "density": screening_table(chosen, lambda case: case.objective in TITLES and case.density not in (0.05, 1.0)),
        "beta": screening_table(
            chosen,
            lambda case: case.objective != "graddiff" and (case.score, case.density, case.scope) in SHOWN_WITH_BETA,
        ),
    }
    text = TEXT.read_text(encoding="utf-8")
    for name, table in tables.items():
        mark = f"<!-- {name} -->"
        text = re.sub(f"{mark}.*?<!-- end -->", f"{mark}\n{table}\n<!-- end -->", text, flags=re.DOTALL)
    with atomic_path(TEXT) as temporary:
        temporary.write_text(text, encoding="utf-8")
    trade_off(chosen, FIGURES / "trade_off.png")
    relearning(chosen, FIGURES / "relearning.png")
    scores(chosen, FIGURES / "scores.png")
