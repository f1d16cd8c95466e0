import pytest

from wagle_trl.evaluation.memorization import exact_memorization, extraction_strength, memorization_summary


def make_record(name, exact=0.5, strength=0.25):
    return {"set": name, "exact_memorization": exact, "extraction_strength": strength}


class TestFormulas:
    @pytest.mark.parametrize(
        ("correct", "exact", "strength"),
        [
            ([1, 1, 1, 1], 1.0, 1.0),
            ([1, 0, 1, 1], 0.75, 0.5),  # two of four tokens have to be given
            ([0, 0, 0, 1], 0.25, 0.25),
            ([1, 1, 1, 0], 0.75, 0.0),
            ([0], 0.0, 0.0),
        ],
        ids=["all right", "one wrong", "last right", "last wrong", "one token"],
    )
    def test_hand_computed_answers(self, correct, exact, strength):
        flags = [bool(flag) for flag in correct]
        assert exact_memorization(flags) == exact
        assert extraction_strength(flags) == strength

    @pytest.mark.parametrize("metric", [exact_memorization, extraction_strength])
    def test_an_answer_without_tokens_is_refused(self, metric):
        with pytest.raises(ValueError, match="`correct` is empty"):
            metric([])


class TestSummary:
    def test_every_set_has_its_own_means(self):
        records = [make_record("forget", 1.0, 0.5), make_record("forget", 0.5, 0.0), make_record("retain")]
        assert memorization_summary(records) == {
            "forget_exact_memorization": 0.75,
            "forget_extraction_strength": 0.25,
            "retain_exact_memorization": 0.5,
            "retain_extraction_strength": 0.25,
        }

    def test_a_record_without_the_field_leaves_the_aggregate_out(self):
        records = [make_record("forget"), {"set": "forget", "exact_memorization": 1.0}]
        assert memorization_summary(records) == {"forget_exact_memorization": 0.75}

    def test_aggregates_are_plain_floats(self):
        assert {type(value) for value in memorization_summary([make_record("forget")]).values()} == {float}

    def test_no_records_are_refused(self):
        with pytest.raises(ValueError, match="empty"):
            memorization_summary([])
