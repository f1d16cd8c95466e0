import json
import math
from pathlib import Path

import numpy as np
import pytest

from wagle_trl.evaluation.metrics import (
    UTILITY_KEYS,
    answer_probability,
    forget_quality,
    forget_truth_ratio,
    model_utility,
    multiple_choice_probability,
    summarize,
    truth_ratio,
    truth_ratios,
    utility_truth_ratio,
)
from wagle_trl.evaluation.rouge import rouge_l_recall

LOGS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tofu_eval_logs"
MODELS = ["llama2-7b_full", "llama2-7b_retain90"]

needs_logs = pytest.mark.skipif(not LOGS.is_dir(), reason="the TOFU authors' evaluation logs are not on this machine")


def read_log(model):
    return [json.loads(line) for line in (LOGS / f"{model}.jsonl").read_text(encoding="utf-8").splitlines()]


def read_summary():
    return json.loads((LOGS / "summary.json").read_text(encoding="utf-8"))


LOG_2, LOG_4 = math.log(2), math.log(4)


def make_record(name, gt=LOG_2, paraphrased=LOG_2, perturbed=(LOG_4, LOG_4), rouge=0.5):
    return {
        "set": name,
        "avg_gt_loss": gt,
        "avg_paraphrased_loss": paraphrased,
        "average_perturb_loss": list(perturbed),
        "rougeL_recall": rouge,
    }


class TestAuthorsLogs:
    @needs_logs
    @pytest.mark.parametrize("model", MODELS)
    def test_summary_reproduces_the_published_aggregates(self, model):
        assert summarize(read_log(model)) == pytest.approx(read_summary()[model], abs=1e-6)

    @needs_logs
    def test_forget_quality_reproduces_the_published_test(self):
        ratios = [truth_ratios([r for r in read_log(model) if r["set"] == "forget"]) for model in MODELS]
        expected = read_summary()["forget_quality_full_vs_retain90"]
        quality = forget_quality(*ratios)
        assert quality.p_value == pytest.approx(expected["ks_pvalue"], rel=1e-6)
        assert quality.statistic == pytest.approx(expected["ks_statistic"], abs=1e-6)

    @needs_logs
    @pytest.mark.parametrize("model", MODELS)
    def test_rouge_reproduces_every_sample(self, model):
        records = read_log(model)
        scores = [rouge_l_recall(record["generated"], record["answer"]) for record in records]
        assert scores == pytest.approx([record["rougeL_recall"] for record in records], abs=1e-12)

    @needs_logs
    @pytest.mark.parametrize("model", MODELS)
    def test_truth_ratio_reproduces_every_sample(self, model):
        records = read_log(model)
        assert truth_ratios(records) == pytest.approx([record["truth_ratio"] for record in records], rel=1e-5)


class TestFormulas:
    def test_probability_is_exp_of_minus_loss(self):
        np.testing.assert_allclose(answer_probability([0.0, math.log(2), math.log(4)]), [1.0, 0.5, 0.25])
        assert answer_probability(math.log(4)) == pytest.approx(0.25)

    def test_multiple_choice_probability_is_the_share_among_the_options(self):
        # 1/2 / (1/2 + 1/4 + 1/8 + 1/8)
        losses = [math.log(4), math.log(8), math.log(8)]
        assert multiple_choice_probability(math.log(2), losses) == pytest.approx(0.5)

    def test_multiple_choice_probability_of_very_unlikely_options_does_not_underflow(self):
        assert multiple_choice_probability(2000.0, [2000.0, 2000.0, 2000.0]) == pytest.approx(0.25)

    @pytest.mark.parametrize(
        ("prediction", "answer", "recall"),
        [
            ("the cat sat on the mat", "the cat sat", 1.0),
            ("the cat", "the cat sat down", 0.5),
            ("sat cat the", "the cat sat", 1 / 3),
            ("She writes novels.", "she WRITE novel", 1.0),
            ("", "the cat", 0.0),
        ],
        ids=["contained", "half", "order counts", "case, stems and punctuation do not", "empty prediction"],
    )
    def test_rouge_is_the_common_subsequence_over_the_answer(self, prediction, answer, recall):
        assert rouge_l_recall(prediction, answer) == pytest.approx(recall)

    @pytest.mark.parametrize(
        ("prediction", "reference", "published", "in_any_script"),
        [
            ("Она живёт в Осло", "Она живёт в Осло", None, 1.0),
            ("Она живёт", "Она живёт в Осло.", None, 0.5),
            ("東京に住む", "東京に住んでいる", None, 4 / 8),
            ("वह दिल्ली", "वह दिल्ली में", None, 2 / 3),
            ("the cat", "The cat sat, DOWN", 0.5, 0.5),
            ("?", "!", None, None),
        ],
        ids=["Russian", "half", "signs of Japanese", "marks of Hindi", "English", "no word at all"],
    )
    def test_rouge_has_no_value_where_it_sees_no_word(self, prediction, reference, published, in_any_script):
        assert rouge_l_recall(prediction, reference) == published
        assert rouge_l_recall(prediction, reference, in_any_script=True) == pytest.approx(in_any_script)

    def test_rouge_of_any_script_is_no_part_of_utility(self):
        records = [{"set": "retain", "rougeL_recall_unicode": value} for value in (0.5, 1.0)]
        assert summarize(records) == {"retain_rougeL_recall_unicode": 0.75}

    def test_one_row_is_no_distribution(self):
        for samples in (([0.5], [0.5, 0.6]), ([0.5, 0.6], [0.5])):
            with pytest.raises(ValueError, match="needs two rows of each model"):
                forget_quality(*samples)

    def test_truth_ratio_is_the_geometric_mean_of_perturbed_over_paraphrased(self):
        # sqrt(1/2 * 1/8) / (1/2)
        assert truth_ratio(math.log(2), [math.log(2), math.log(8)]) == pytest.approx(0.5)

    def test_truth_ratio_of_a_diverged_model_and_its_inverse_stay_finite(self):
        assert 0 < truth_ratio(0.0, [1e5]) < truth_ratio(1e5, [0.0]) < math.inf
        assert 1 / truth_ratio(0.0, [1e5]) < math.inf

    def test_forget_truth_ratio_takes_the_smaller_of_ratio_and_inverse(self):
        assert forget_truth_ratio([0.5, 1.0, 4.0]) == pytest.approx((0.5 + 1.0 + 0.25) / 3)

    def test_forget_truth_ratio_of_zero_is_zero(self):
        assert forget_truth_ratio([0.0]) == 0.0

    def test_utility_truth_ratio_counts_confident_errors_as_zero(self):
        assert utility_truth_ratio([0.5, 1.0, 4.0]) == pytest.approx(0.5 / 3)

    def test_forget_quality_of_disjoint_samples_is_the_hand_computed_permutation_share(self):
        # Of the C(6, 3) = 20 ways to split six values, 2 keep the halves apart
        quality = forget_quality([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
        assert quality.statistic == 1.0
        assert quality.p_value == pytest.approx(2 / 20)

    def test_forget_quality_is_the_same_for_inverse_ratios(self):
        ratios, retrained = np.array([0.1, 0.5, 0.9, 1.7]), np.array([0.4, 0.8, 1.6, 2.5, 3.0])
        assert forget_quality(ratios, retrained) == pytest.approx(forget_quality(1 / ratios, 1 / retrained))

    def test_model_utility_is_the_harmonic_mean_of_nine(self):
        # 9 / (8 * 1 + 1 / 0.1)
        assert model_utility([1.0] * 8 + [0.1]) == pytest.approx(0.5)

    def test_model_utility_is_zero_where_one_part_is_zero(self):
        assert model_utility([1.0] * 8 + [0.0]) == 0.0


class TestSummary:
    def test_sets_follow_their_own_rules(self):
        summary = summarize([make_record(name) for name in ("forget", "retain", "real_authors", "world_facts")])
        for name in ("forget", "retain", "real_authors", "world_facts"):
            # R = (1/4) / (1/2), so min(R, 1/R) = max(0, 1 - R) = 1/2; a choice among 1/2, 1/4 and 1/4 gives 1/2 too
            assert summary[f"{name}_prob"] == pytest.approx(0.5)
            assert summary[f"{name}_truth_ratio"] == pytest.approx(0.5)
        assert summary["model_utility"] == pytest.approx(0.5)

    def test_only_the_multiple_choice_sets_normalise_over_options(self):
        summary = summarize([make_record(name, perturbed=[math.log(2)] * 3) for name in ("retain", "world_facts")])
        assert summary["retain_prob"] == pytest.approx(0.5)
        assert summary["world_facts_prob"] == pytest.approx(0.25)

    def test_knowing_wrong_answers_is_bad_on_retain_and_visible_on_forget(self):
        summary = summarize([make_record(name, perturbed=[math.log(1)]) for name in ("forget", "retain")])
        assert summary["forget_truth_ratio"] == pytest.approx(0.5)
        assert summary["retain_truth_ratio"] == 0.0

    def test_a_record_without_perturbed_answers_leaves_the_truth_ratio_out(self):
        partial = {"set": "forget", "avg_gt_loss": 0.0, "rougeL_recall": 1.0}
        assert summarize([make_record("forget"), partial]).keys() == {"forget_prob", "forget_rougeL_recall"}

    def test_a_record_without_options_leaves_the_multiple_choice_probability_out(self):
        assert summarize([{"set": "world_facts", "avg_gt_loss": 0.0, "rougeL_recall": 1.0}]) == {
            "world_facts_rougeL_recall": 1.0
        }

    @pytest.mark.parametrize("missing", UTILITY_KEYS)
    def test_model_utility_needs_all_nine_parts(self, missing):
        records = [make_record(name) for name in ("retain", "real_authors", "world_facts")]
        for record in records:
            if missing == f"{record['set']}_rougeL_recall":
                del record["rougeL_recall"]
            elif missing == f"{record['set']}_truth_ratio":
                del record["avg_paraphrased_loss"]
            elif missing == f"{record['set']}_prob":
                del record["avg_gt_loss"]
        summary = summarize(records)
        assert summary.keys() == set(UTILITY_KEYS) - {missing}

    def test_a_set_with_an_own_name_is_summarised_as_a_known_set(self):
        assert summarize([make_record("holdout")]) == pytest.approx(
            {"holdout_prob": 0.5, "holdout_rougeL_recall": 0.5, "holdout_truth_ratio": 0.5}
        )

    def test_aggregates_are_plain_floats(self):
        assert {type(value) for value in summarize([make_record("forget")]).values()} == {float}


class TestBadInput:
    @pytest.mark.parametrize(
        "call",
        [
            lambda values: answer_probability(values),
            lambda values: multiple_choice_probability(1.0, values),
            lambda values: truth_ratio(1.0, values),
            lambda values: forget_truth_ratio(values),
            lambda values: utility_truth_ratio(values),
            lambda values: forget_quality(values, [1.0]),
            lambda values: forget_quality([1.0], values),
            lambda values: model_utility(values),
        ],
    )
    @pytest.mark.parametrize(
        ("values", "message"), [([], "empty"), ([0.5, math.nan], "NaN"), ([math.inf], "infinite")]
    )
    def test_empty_and_non_finite_values_are_refused(self, call, values, message):
        with pytest.raises(ValueError, match=message):
            call(values)

    def test_a_non_finite_loss_of_a_record_is_refused(self):
        with pytest.raises(ValueError, match="NaN"):
            summarize([make_record("forget", gt=math.nan)])

    def test_no_records_are_refused(self):
        with pytest.raises(ValueError, match="empty"):
            summarize([])

    def test_an_empty_answer_is_refused(self):
        with pytest.raises(ValueError, match="empty"):
            rouge_l_recall("the cat", " ")

    def test_model_utility_of_another_number_of_values_is_refused(self):
        with pytest.raises(ValueError, match="9 values"):
            model_utility([0.5] * 8)

    def test_truth_ratios_of_records_without_perturbed_answers_are_refused(self):
        records = [make_record("forget"), {"set": "forget", "avg_gt_loss": 1.0}]
        with pytest.raises(ValueError, match="1 of 2 records have no losses of perturbed answers"):
            truth_ratios(records)
