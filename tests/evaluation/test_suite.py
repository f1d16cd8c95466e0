import copy
import json
from pathlib import Path

import pytest

from wagle_trl.evaluation import suite, tofu
from wagle_trl.evaluation.inference import answer_likelihoods
from wagle_trl.evaluation.suite import evaluate_sets, summarize_all, unseen_set
from wagle_trl.evaluation.tofu import EvalOptions, evaluate_rows
from wagle_trl.files.run_folder import PARTIAL_FILE
from wagle_trl.masks import cache_key as key

from .conftest import RATIO, ROWS, make_model, make_record

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_tofu = pytest.mark.skipif(not DATA.is_dir(), reason="the TOFU rows and logs are not on this machine")

OPTIONS = EvalOptions(batch_size=1, max_new_tokens=3)
SETS = {
    "forget": ROWS,
    "retain": [{"question": f"What is {i}?", "answer": f"It is {i} and no more."} for i in range(4)],
    "holdout": [{"question": f"Who is {i}?", "answer": f"Nobody knows {i}."} for i in range(3)],
}


def evaluate(model, tokenizer, sets=SETS, options=OPTIONS, **kwargs):
    return evaluate_sets(model, tokenizer, sets, options, progress=False, **kwargs)


def as_approximate(record):
    return {
        key: pytest.approx(v, rel=1e-5, abs=1e-5) if isinstance(v, float | list) else v for key, v in record.items()
    }


class TestSets:
    def test_records_are_those_of_every_set_in_order(self, model, tokenizer):
        records = evaluate(model, tokenizer)
        assert [(r["set"], r["index"]) for r in records] == [
            (n, i) for n, rows in SETS.items() for i in range(len(rows))
        ]
        forget = evaluate_rows(model, tokenizer, ROWS, "forget", batch_size=1, max_new_tokens=3, progress=False)
        assert records[: len(ROWS)] == forget

    def test_holdout_rows_are_scored_and_not_answered(self, model, tokenizer):
        records = evaluate(model, tokenizer)
        assert all(("generated" in record) is (record["set"] != "holdout") for record in records)

    def test_the_batch_size_does_not_matter(self, model, memorized_model, tokenizer):
        one, many = (
            evaluate(memorized_model, tokenizer, options=EvalOptions(batch_size=size, max_new_tokens=3), base=model)
            for size in (1, 16)
        )
        assert one == [as_approximate(record) for record in many]
        assert summarize_all(one) == pytest.approx(summarize_all(many), rel=1e-5, abs=1e-5)

    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (["forget", "retain", "holdout", "unseen_retain"], "unseen_retain"),
            (["forget", "retain", "holdout"], "holdout"),
            (["forget", "retain"], "retain"),
        ],
    )
    def test_a_base_is_compared_on_the_most_unseen_text(self, model, tokenizer, names, expected):
        assert unseen_set(names) == expected
        records = evaluate(model, tokenizer, dict.fromkeys(names, ROWS[:1]), base=copy.deepcopy(model))
        divergences = {r["set"]: r["kl_to_base"] for r in records if "kl_to_base" in r}
        assert divergences == {expected: pytest.approx(0.0, abs=1e-6)}
        assert summarize_all(records)[f"kl_to_base_{expected}"] == pytest.approx(0.0, abs=1e-6)

    def test_a_base_without_text_to_compare_on_is_refused(self, model, tokenizer):
        with pytest.raises(ValueError, match="A base model needs text"):
            evaluate(model, tokenizer, {"forget": ROWS}, base=model)

    def test_a_bad_row_of_the_last_set_is_named_before_the_first_is_scored(self, model, tokenizer, monkeypatch):
        monkeypatch.setattr(tofu, "answer_likelihoods", lambda *args: pytest.fail("rows were evaluated"))
        with pytest.raises(ValueError, match="Row 0 of the set 'retain' cannot be evaluated"):
            evaluate(model, tokenizer, {"forget": ROWS, "retain": [{"question": "Who?", "answer": ""}]})


class EvaluatedBatches:
    """Counts the batches that are evaluated, and fails after so many."""

    def __init__(self, monkeypatch, last=None):
        self.batches, self.last = 0, last
        monkeypatch.setattr(tofu, "answer_likelihoods", self)

    def __call__(self, *args):
        if self.batches == self.last:
            raise KeyboardInterrupt
        self.batches += 1
        return answer_likelihoods(*args)


class TestResume:
    @pytest.mark.parametrize("last", [0, 2, 5, 9])
    def test_an_interrupted_evaluation_evaluates_the_missing_rows_alone(
        self, model, tokenizer, tmp_path, monkeypatch, last
    ):
        base = make_model(tokenizer)
        whole = evaluate(model, tokenizer, base=base)
        first = EvaluatedBatches(monkeypatch, last)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, tokenizer, base=base, folder=tmp_path)
        second = EvaluatedBatches(monkeypatch)
        assert evaluate(model, tokenizer, base=base, folder=tmp_path) == whole
        assert (first.batches, second.batches) == (last, len(whole) - last)

    def test_a_finished_evaluation_evaluates_nothing_again(self, model, tokenizer, tmp_path, monkeypatch):
        whole = evaluate(model, tokenizer, folder=tmp_path)
        again = EvaluatedBatches(monkeypatch)
        assert evaluate(model, tokenizer, folder=tmp_path) == whole
        assert again.batches == 0

    def test_a_damaged_record_is_scored_again_and_the_evaluation_goes_on(
        self, model, tokenizer, tmp_path, monkeypatch, caplog
    ):
        whole = evaluate(model, tokenizer, folder=tmp_path)
        path = tmp_path / PARTIAL_FILE
        head, first, *others = path.read_text().splitlines(keepends=True)
        path.write_text("".join([head, first.replace('"index"', '"inde'), *others]))
        scored = EvaluatedBatches(monkeypatch)
        assert evaluate(model, tokenizer, folder=tmp_path) == whole
        assert scored.batches == 1
        assert f"{path}: 1 damaged records dropped, they are computed again." in caplog.messages

    def test_an_interruption_within_a_batch_loses_that_batch_alone(self, model, tokenizer, tmp_path, monkeypatch):
        answers = tofu.generate_answers
        calls = iter([answers, answers])
        monkeypatch.setattr(tofu, "generate_answers", lambda *args: next(calls)(*args))
        with pytest.raises(RuntimeError):  # a generator that ends inside another
            evaluate(model, tokenizer, folder=tmp_path)
        assert len((tmp_path / PARTIAL_FILE).read_text().splitlines()) == 1 + 2
        monkeypatch.setattr(tofu, "generate_answers", answers)
        assert evaluate(model, tokenizer, folder=tmp_path) == evaluate(model, tokenizer)

    def test_a_smaller_batch_goes_on_after_one_that_did_not_fit(self, model, tokenizer, tmp_path, monkeypatch):
        whole = evaluate(model, tokenizer)
        EvaluatedBatches(monkeypatch, last=1)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, tokenizer, options=EvalOptions(batch_size=2, max_new_tokens=3), folder=tmp_path)
        rest = EvaluatedBatches(monkeypatch)
        assert evaluate(model, tokenizer, folder=tmp_path) == [as_approximate(record) for record in whole]
        assert rest.batches == len(whole) - 2

    @pytest.mark.parametrize("change", ["weights", "dtype", "stop tokens", "version", "options", "rows", "base"])
    def test_anything_that_changes_records_starts_afresh(self, model, tokenizer, tmp_path, monkeypatch, change):
        evaluate(model, tokenizer, folder=tmp_path)
        arguments = {"sets": SETS, "options": OPTIONS}
        if change == "weights":
            model.model.norm.weight.data[0] = 2
        elif change == "dtype":
            model.bfloat16()
        elif change == "stop tokens":
            model.generation_config.eos_token_id = [tokenizer.eos_token_id, 7]
        elif change == "version":
            monkeypatch.setattr(key, "version", lambda name: f"{name} of tomorrow")
        elif change == "options":
            arguments["options"] = EvalOptions(batch_size=1, max_new_tokens=3, mia_k=0.2)
        elif change == "rows":
            arguments["sets"] = SETS | {"retain": SETS["retain"][::-1]}
        else:
            arguments["base"] = make_model(tokenizer)
        again = EvaluatedBatches(monkeypatch)
        evaluate(model, tokenizer, folder=tmp_path, **arguments)
        assert again.batches == 10

    def test_a_resume_says_after_how_many_rows_and_a_first_time_nothing(
        self, model, tokenizer, tmp_path, monkeypatch, caplog
    ):
        EvaluatedBatches(monkeypatch, last=4)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, tokenizer, folder=tmp_path)
        assert caplog.messages == []
        EvaluatedBatches(monkeypatch)
        evaluate(model, tokenizer, folder=tmp_path)
        assert caplog.messages == [f"{tmp_path / PARTIAL_FILE}: continuing after 4 of 10 rows."]


class TestSummary:
    def test_every_metric_of_the_suite_is_there(self, model, memorized_model, tokenizer):
        records = evaluate(memorized_model, tokenizer, base=model)
        retrained = [record | {"min_k": -record["index"]} for record in records]
        summary = summarize_all(records, retrained)
        assert summary.keys() >= {
            *("forget_prob", "forget_rougeL_recall", "retain_prob", "holdout_prob"),
            *("forget_exact_memorization", "forget_extraction_strength", "holdout_extraction_strength"),
            *("mia_loss_auc", "mia_zlib_auc", "mia_min_k_auc", "mia_min_k_plus_plus_auc"),
            *("kl_to_base_holdout", "privleak"),
        }
        assert summary["forget_extraction_strength"] == 1.0
        assert summary["mia_min_k_auc"] == 1.0
        assert summary["privleak"] == pytest.approx(-100.0)
        assert {type(value) for value in summary.values()} == {float}

    def test_the_divergence_is_a_mean_over_tokens_and_not_over_rows(self):
        records = [make_record("retain", kl_to_base=kl, num_token_gt=n) for kl, n in ((1.0, 1), (0.2, 3))]
        assert summarize_all(records)["kl_to_base_retain"] == pytest.approx((1.0 + 3 * 0.2) / 4)

    def test_privleak_is_that_of_the_two_aucs(self):
        records = [make_record("forget", -1.0), make_record("forget", -3.0), make_record("holdout", -2.0)]
        retrained = [make_record("forget", m) for m in (-3.0, -3.0, -3.0, -1.0)] + [make_record("holdout", -2.0)]
        # AUCs of 1/2 and 1/4: (1/2 - 3/4) / (3/4)
        assert summarize_all(records, retrained)["privleak"] == pytest.approx(-100 / 3)

    def test_a_reference_without_holdout_rows_gives_the_forget_quality_alone(self):
        records = [make_record("forget", **RATIO), make_record("forget", **RATIO), make_record("holdout")]
        summary = summarize_all(records, [make_record("forget", **RATIO)] * 2)
        assert summary["forget_quality"] == 1.0
        assert "privleak" not in summary

    def test_privleak_is_left_out_where_it_is_not_defined(self, caplog):
        records = [
            make_record("forget", -1.0, **RATIO),
            make_record("forget", -1.0, **RATIO),
            make_record("holdout", -2.0),
        ]
        assert summarize_all(records, records).keys() & {"privleak", "forget_quality"} == {"forget_quality"}
        assert len(caplog.messages) == 1 and "PrivLeak has no value" in caplog.messages[0]

    def test_forget_quality_of_one_row_is_left_out_and_says_why(self, caplog):
        records = [make_record("forget", **RATIO)]
        assert not summarize_all(records, records).keys() & {"forget_quality", "forget_quality_ks"}
        assert len(caplog.messages) == 1 and "Forget quality has no value" in caplog.messages[0]

    @needs_tofu
    def test_the_authors_logs_have_their_published_aggregates_and_forget_quality(self):
        full, retrained = (
            [json.loads(line) for line in (DATA / "tofu_eval_logs" / f"llama2-7b_{name}.jsonl").open(encoding="utf-8")]
            for name in ("full", "retain90")
        )
        expected = json.loads((DATA / "tofu_eval_logs" / "summary.json").read_text(encoding="utf-8"))
        summary = summarize_all(full, retrained)
        quality = expected["forget_quality_full_vs_retain90"]
        assert summary.pop("forget_quality") == pytest.approx(quality["ks_pvalue"], rel=1e-6)
        assert summary.pop("forget_quality_ks") == pytest.approx(quality["ks_statistic"], abs=1e-6)
        assert summary == pytest.approx(expected["llama2-7b_full"], abs=1e-6)

    @needs_tofu
    def test_the_tofu_sets_go_through_the_whole_suite(self, model, tokenizer):
        files = {"forget": "forget10_perturbed", "holdout": "holdout10"}
        sets = {
            name: [json.loads(line) for line in (DATA / "tofu" / f"{file}.jsonl").open(encoding="utf-8")][:4]
            for name, file in files.items()
        }
        summary = summarize_all(evaluate(model, tokenizer, sets, base=copy.deepcopy(model)))
        assert {"forget_truth_ratio", "mia_zlib_auc", "kl_to_base_holdout"} <= summary.keys()


def test_the_partial_file_names_what_it_belongs_to(model, tokenizer, tmp_path):
    evaluate(model, tokenizer, {"retain": SETS["retain"]}, folder=tmp_path)
    head, *records = (tmp_path / suite.PARTIAL_FILE).read_text().splitlines()
    assert json.loads(head).keys() == {"key"}
    assert len(records) == 4
