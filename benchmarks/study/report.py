"""Tables of the study, from its raw rows alone."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from benchmarks.environment import ROOT
from benchmarks.study.plan import CLAIM
from benchmarks.tables import fill, markdown
from wagle_trl.comparison.interval import Interval
from wagle_trl.comparison.runs import LEVELS
from wagle_trl.comparison.trajectory import matched
from wagle_trl.evaluation.metrics import forget_quality

TEXT = ROOT / "benchmarks" / "STUDY.md"
PAGE = ROOT / "docs" / "settings.md"
LASTING = "-100-steps"  # end of the name of an objective whose runs go on
REACHED_BY = 40  # of at most 50 steps: another seed may be slower by a quarter
TITLES = {"npo": "NPO", "graddiff": "GradDiff"}
FISHER, WAGLE, RANDOM, DENSE = CLAIM
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


def case_of(row: dict) -> Case:
    return Case(row["objective"], row["score"], row["density"], row["scope"])


def seen_kept(row: dict) -> float:
    """
    What the learning rate is picked by: the seen retain probability where the forget probability reaches 0.1; minus the
    last forget probability if that takes more than `REACHED_BY` steps.
    """
    at = matched(row["trajectory"], 0.1)
    return at["retain"] if at is not None and at["step"] <= REACHED_BY else -row["trajectory"]["forget"][-1]


def picked(rows: list[dict]) -> dict[Case, list[dict]]:
    """
    The rows of every case at the learning rate that [`seen_kept`] picks on seed 0, by seed. A case whose runs never
    forgot so much has none.
    """
    cases = defaultdict(list)
    for row in rows:
        if not row["objective"].endswith(LASTING):
            cases[case_of(row)].append(row)
    chosen = {}
    for case, members in cases.items():
        kept = {row["learning_rate"]: seen_kept(row) for row in members if row["seed"] == 0}
        rate = max(kept, key=kept.get, default=None)
        found = kept.get(rate, -1.0) > 0
        chosen[case] = sorted((r for r in members if found and r["learning_rate"] == rate), key=lambda r: r["seed"])
    return chosen


def kept_at(rows: Iterable[dict], level: float) -> list[float]:
    """Unseen retain probability at a level of forgetting, of the rows that reach it."""
    found = (matched(row["trajectory"], level) for row in rows)
    return [at["unseen_retain"] for at in found if at is not None]


# Tables


def main_table(chosen: dict[Case, list[dict]], worlds: list[dict]) -> str:
    """Cases with several seeds: what is kept, and what is left of the forget rows at the end and under attack."""
    header = ["objective", "mask", "rate", "unseen at 0.3", "unseen at 0.1"]
    header += ["relearned", "unseen, relearned", "paraphrase", "forget quality"]
    body = []
    for case, rows in sorted(chosen.items(), key=order):
        if len(rows) > 1:
            cells = [Interval.of(kept_at(rows, level)) for level in LEVELS] + _attacked(rows, worlds)
            body.append([TITLES[case.objective], case.label, f"{rows[0]['learning_rate']:g}", *cells])
    return markdown(header, body)


def summary_table(chosen: dict[Case, list[dict]]) -> str:
    """The arms of the claim in short, for the documentation: unseen retain rows at 0.1, and forget rows after relearning."""
    header = ["mask"] + [f"{title}, {what}" for title in TITLES.values() for what in ("unseen retain", "relearned")]
    body = []
    for arm in CLAIM:
        rows = [chosen.get(Case(objective, *arm), []) for objective in TITLES]
        cells = [
            Interval.of(values)
            for part in rows
            for values in (kept_at(part, 0.1), [row["relearn"]["forget"][-1] for row in part])
        ]
        body.append([Case("npo", *arm).label, *cells])
    return markdown(header, body)


def _attacked(rows: list[dict], worlds: list[dict]) -> list:
    oracles = {world["seed"]: world["oracle"]["truth_ratios"] for world in worlds}
    judged = [row for row in rows if row["seed"] in oracles]
    qualities = [forget_quality(row["end"]["truth_ratios"], oracles[row["seed"]]).p_value for row in judged]
    return [
        Interval.of(row["relearn"]["forget"][-1] for row in rows),
        Interval.of(row["relearn"]["unseen_retain"] for row in rows),
        Interval.of(row["end"]["paraphrase"] for row in rows),
        f"{np.median(qualities):.2g}" if qualities else "",
    ]


def order(item: tuple[Case, list[dict]]) -> tuple:
    """By objective, then the best first."""
    case, rows = item
    values = kept_at(rows, 0.1)
    return (case.objective != "npo", -np.mean(values) if values else 1.0)


def first_seed(chosen: dict[Case, list[dict]]) -> dict[Case, list[dict]]:
    """The rows of seed 0, which all cases have: means over more seeds would not be comparable with them."""
    return {case: rows[:1] for case, rows in chosen.items()}


def paired_table(chosen: dict[Case, list[dict]]) -> str:
    """What a mask keeps more of the unseen rows than others, seed by seed, at forgetting 0.1."""
    header = ["objective", "mask", "against", "difference at 0.1", "intervals disjoint", "gap after relearning"]
    body = []
    for objective in TITLES:
        several = {case: rows for case, rows in chosen.items() if case.objective == objective and len(rows) > 1}
        for ours in (Case(objective, *FISHER), Case(objective, *WAGLE)):
            for case, rows in several.items():
                if case != ours:
                    body.append([TITLES[objective], ours.label, case.label, *_against(several[ours], rows)])
    return markdown(header, body)


def _against(ours: list[dict], others: list[dict]) -> list:
    pairs = [(a, b) for a in ours for b in others if a["seed"] == b["seed"]]
    at = [(kept_at([a], 0.1), kept_at([b], 0.1)) for a, b in pairs]
    at = [(a[0], b[0]) for a, b in at if a and b]
    first, second = (Interval.of(values) for values in zip(*at))
    half_widths = sum(math.inf if interval.half is None else interval.half for interval in (first, second))
    disjoint = abs(first.mean - second.mean) > half_widths
    gaps = [_gap(a) - _gap(b) for a, b in pairs if "relearn" in a and "relearn" in b]
    return [Interval.of(a - b for a, b in at), "yes" if disjoint else "no", Interval.of(gaps) if gaps else ""]


def _gap(row: dict) -> float:
    """What is left of the unseen rows above what came back of the forgotten ones."""
    return row["relearn"]["unseen_retain"] - row["relearn"]["forget"][-1]


def screening_table(chosen: dict[Case, list[dict]], wanted) -> str:
    """Seed 0 of the cases that `wanted` accepts, best first."""
    header = ["objective", "mask", "rate", "step at 0.1", "seen at 0.1", "unseen at 0.3", "unseen at 0.1"]
    body, names = [], TITLES | BETAS
    for case, rows in sorted(first_seed(chosen).items(), key=order):
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
        if row["objective"].endswith(LASTING):
            cases[case_of(row)].append(row)
    header = ["objective", "mask", "rate", "seeds", "forget at the end", "unseen at the end", "relearned"]
    body = []
    for case, members in cases.items():
        ends = [[row["trajectory"][name][-1] for row in members] for name in ("forget", "unseen_retain")]
        relearned = [row["relearn"]["forget"][-1] for row in members if "relearn" in row]
        cells = [len(members), *map(Interval.of, ends), Interval.of(relearned) if relearned else ""]
        title = TITLES[case.objective.removesuffix(LASTING)]
        body.append([title, case.label, f"{members[0]['learning_rate']:g}", *cells])
    return markdown(header, body)


# All of it


def tables(rows: list[dict], worlds: list[dict], anatomies: list[dict]) -> dict[str, str]:
    """Every table of STUDY.md, by its mark."""
    chosen = picked(rows)

    def shows_beta(case: Case) -> bool:
        return case.objective != "graddiff" and case[1:] == FISHER

    return {
        "summary": summary_table(chosen),
        "worlds": world_table(worlds),
        "main": main_table(chosen, worlds),
        "paired": paired_table(chosen),
        "scores": screening_table(chosen, lambda case: case.objective in TITLES and case.density in (0.05, 1.0)),
        "density": screening_table(chosen, lambda case: case.objective in TITLES and case.density not in (0.05, 1.0)),
        "anatomy": anatomy_table(anatomies),
        "beta": screening_table(chosen, shows_beta),
        "lasting": lasting_table(rows),
    }


def write_report(rows: list[dict], worlds: list[dict], anatomies: list[dict]) -> None:
    """Put the tables into STUDY.md and the documentation."""
    made = tables(rows, worlds, anatomies)
    for path in (TEXT, PAGE):
        fill(path, made)
