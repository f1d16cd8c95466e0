import math
import zlib

import pytest

from wagle_trl.evaluation.membership import (
    lowest_mean,
    membership_auc,
    membership_signal,
    membership_summary,
    privleak,
    zlib_bytes,
)


def make_record(name, loss=1.0, size=10, min_k=-2.0, min_k_plus_plus=-1.0):
    fields = {"avg_gt_loss": loss, "zlib_bytes": size, "min_k": min_k, "min_k_plus_plus": min_k_plus_plus}
    return {"set": name} | fields


class TestFormulas:
    @pytest.mark.parametrize(
        ("k", "expected"),
        [(0.2, -5.0), (0.4, -4.5), (0.5, -4.5), (1.0, -3.0), (0.01, -5.0)],
        ids=["one of five", "two of five", "rounded down", "all", "at least one"],
    )
    def test_the_lowest_mean_takes_the_hand_computed_tokens(self, k, expected):
        assert lowest_mean([-1.0, -5.0, -3.0, -2.0, -4.0], k) == expected

    def test_the_size_of_a_text_is_that_of_its_compressed_bytes(self):
        assert zlib_bytes("Tromsø" * 100) == len(zlib.compress(("Tromsø" * 100).encode("utf-8"))) < 100

    @pytest.mark.parametrize(
        ("attack", "expected"), [("loss", -3.0), ("zlib", -0.5), ("min_k", -2.0), ("min_k_plus_plus", -1.0)]
    )
    def test_a_score_is_higher_for_members(self, attack, expected):
        assert membership_signal(make_record("forget", loss=3.0, size=6), attack) == expected

    @pytest.mark.parametrize(
        ("members", "others", "expected"),
        [
            ([3.0, 4.0], [1.0, 2.0], 1.0),
            ([1.0, 2.0], [3.0, 4.0], 0.0),
            ([1.0, 3.0], [2.0, 0.0], 0.75),  # three of the four pairs are in order
            ([1.0], [1.0], 0.5),
            ([2.0, 2.0, 0.0], [1.0], 2 / 3),
        ],
        ids=["apart", "reversed", "overlapping", "tie", "sets of different sizes"],
    )
    def test_the_auc_is_the_share_of_pairs_in_order(self, members, others, expected):
        assert membership_auc(members, others) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("auc", "retrained", "expected"),
        [
            (0.5, 0.5, 0.0),
            (1.0, 0.5, -100.0),  # (0 - 0.5) / 0.5: every forget row still looks known
            (0.0, 0.5, 100.0),  # (1 - 0.5) / 0.5
            (0.7, 0.6, -25.0),  # (0.3 - 0.4) / 0.4
        ],
    )
    def test_privleak_is_the_hand_computed_percentage(self, auc, retrained, expected):
        assert privleak(auc, retrained) == pytest.approx(expected)


class TestSummary:
    def test_every_attack_has_its_auc(self):
        records = [
            make_record("forget", loss=1.0, size=10, min_k=-1.0, min_k_plus_plus=0.0),
            make_record("forget", loss=3.0, size=60, min_k=-1.0, min_k_plus_plus=-3.0),
            make_record("holdout", loss=2.0, size=10, min_k=-1.0, min_k_plus_plus=-1.0),
            make_record("holdout", loss=4.0, size=50, min_k=-1.0, min_k_plus_plus=-2.0),
            make_record("retain", loss=9.0),
        ]
        # Losses over sizes are 0.1 and 0.05 against 0.2 and 0.08, of which the pair 0.1 and 0.08 is out of order
        assert membership_summary(records) == {
            "mia_loss_auc": 0.75,
            "mia_zlib_auc": 0.75,
            "mia_min_k_auc": 0.5,
            "mia_min_k_plus_plus_auc": 0.5,
        }

    @pytest.mark.parametrize("lacking", ["forget", "holdout"])
    def test_one_set_alone_has_no_aucs(self, lacking):
        records = [make_record(name) for name in ("forget", "holdout", "retain") if name != lacking]
        assert membership_summary(records) == {}

    def test_a_record_without_a_field_leaves_its_attacks_out(self):
        records = [make_record("forget"), {"set": "holdout", "avg_gt_loss": 1.0}]
        assert membership_summary(records) == {"mia_loss_auc": 0.5}

    def test_aucs_are_plain_floats(self):
        summary = membership_summary([make_record("forget"), make_record("holdout")])
        assert {type(value) for value in summary.values()} == {float}


class TestBadInput:
    @pytest.mark.parametrize(
        "call",
        [
            lambda values: lowest_mean(values, 0.2),
            lambda values: membership_auc(values, [1.0]),
            lambda values: membership_auc([1.0], values),
        ],
    )
    @pytest.mark.parametrize(
        ("values", "message"), [([], "empty"), ([0.5, math.nan], "NaN"), ([math.inf], "infinite")]
    )
    def test_empty_and_non_finite_values_are_refused(self, call, values, message):
        with pytest.raises(ValueError, match=message):
            call(values)

    def test_a_retrained_model_that_knows_every_forget_row_is_refused(self):
        with pytest.raises(ValueError, match="PrivLeak is not defined"):
            privleak(0.5, 1.0)
