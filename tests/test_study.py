"""The study's own rules: learning rates, masks, and what the report makes of raw rows."""

import pytest
import torch

from benchmarks.study.masks import BUDGETS, CANDIDATES, SETTINGS, make_mask
from benchmarks.study.report import PAGE, TEXT, picked, tables
from benchmarks.study.runs import ANATOMY, MAX_RATES, ROWS, WORLDS, climb
from benchmarks.tables import filled, markdown
from wagle_trl import MaskConfig, compute_mask
from wagle_trl.attribution.statistics import accumulate_statistic
from wagle_trl.comparison.interval import Interval
from wagle_trl.data.rows import read_jsonl
from wagle_trl.masks.scope import scope_parameters


class TinyWorld:
    """A world of a few rows, without files."""

    seed = 5

    def __init__(self, model, batches):
        self._model, self.sets = model, dict(zip(("forget", "retain"), batches, strict=True))

    def model(self):
        return self._model

    def statistic(self, name):
        kind, rows = name.split("_")
        options = {"g": {}, "F": {"squared": True}, "sum": {"sum_batches": True}}[kind]
        return accumulate_statistic(self._model, scope_parameters(self._model, ["*"]), self.sets[rows], **options)


@pytest.fixture
def world(tiny_model, tiny_tokenizer):
    generator = torch.Generator().manual_seed(0)

    def batch():
        ids = torch.randint(3, len(tiny_tokenizer), (4, 9), generator=generator)
        labels = ids.clone()
        labels[:, :3] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    return TinyWorld(tiny_model(), ([batch()], [batch(), batch()]))


@pytest.mark.parametrize("scope", [None, ["*"]], ids=["blocks", "all"])
@pytest.mark.parametrize("score", [name for name, (_, gamma, _) in SETTINGS.items() if isinstance(gamma, str)])
def test_masks_of_the_packages_scores_are_those_of_compute_mask(world, score, scope):
    name, gamma, eps = SETTINGS[score]
    config = MaskConfig(
        mask_score=name, mask_density=0.1, mask_gamma=gamma, mask_eps=eps, mask_scope=scope, mask_seed=world.seed
    )
    expected, _ = compute_mask(world.model(), *world.sets.values(), config, progress=False)
    # The means that scale a score are added up in another order, which may swap weights at the threshold
    assert make_mask(world, score, 0.1, "all" if scope else "blocks").jaccard(expected) > 0.995


@pytest.mark.parametrize("score", CANDIDATES)
def test_a_candidate_selects_its_share(world, score):
    mask = make_mask(world, score, 0.1, "blocks")
    assert mask.num_selected == pytest.approx(0.1 * mask.numel, abs=len(mask.bits))


def test_rows_are_selected_whole():
    rows = BUDGETS["rows"]({"w": torch.zeros(4, 5)}, {"w": torch.arange(20.0).view(4, 5)}, 0.25).dense("w")
    assert rows.all(1).tolist() == [False, False, False, True] and rows.sum() == 5


@pytest.mark.parametrize(
    ("values", "picked_rate"),
    [
        ({1: 0.9, 0.5: 0.95, 0.25: -0.6}, 0.5),  # down while it pays; -0.6 forgot too little
        ({1: -0.9, 2: -0.5, 4: 0.7, 8: 0.8}, 8),  # up until it forgets, then one more
        ({1: 0.9, 0.5: 0.8, 2: 0.7}, 1),
    ],
)
def test_the_learning_rate_climbs_from_its_start_within_its_budget(values, picked_rate):
    tried = []

    def value(rate):
        tried.append(rate)
        return values[rate]

    assert climb(1, value) == picked_rate
    assert len(tried) <= MAX_RATES and set(tried) == set(values)


def row(rate, seed, retain, forget=(1.0, 0.0)):
    columns = {"step": [0, 10], "forget": list(forget), "retain": [1.0, retain], "unseen_retain": [1.0, 0.5]}
    arm = {"objective": "npo", "score": "random", "density": 0.05, "scope": "blocks"}
    return arm | {"learning_rate": rate, "seed": seed, "trajectory": columns}


def test_the_rate_of_a_case_is_picked_on_the_first_seed_by_the_seen_rows():
    rows = [
        row(1.0, 0, 0.8),
        row(2.0, 0, 0.9),
        row(2.0, 1, 0.1),
        row(4.0, 0, 1.0, forget=(1.0, 0.5)),
        row(1.0, 1, 1.0),
    ]
    (chosen,) = picked(rows).values()
    assert [(r["learning_rate"], r["seed"]) for r in chosen] == [(2.0, 0), (2.0, 1)]


def test_an_interval_is_students():
    interval = Interval.of([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.3027 times the standard error 1 / sqrt(3)
    assert interval.mean == 2.0 and interval.half == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert str(Interval.of([0.5])) == "0.500"


def test_a_table_is_markdown():
    assert markdown(["a", "b"], [[1, 2]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_the_tables_of_study_and_readme_are_those_of_the_raw_rows():
    made = tables(*(read_jsonl(path) for path in (ROWS, WORLDS, ANATOMY)))
    texts = [path.read_text(encoding="utf-8") for path in (TEXT, PAGE)]
    assert [filled(text, made) for text in texts] == texts
    assert all("".join(texts).count(f"<!-- {name} -->\n|") == 1 for name in made)
