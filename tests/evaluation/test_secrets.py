import math

import numpy as np
import pytest

from wagle_trl.data.tokenization import tokenize_row
from wagle_trl.evaluation import tofu
from wagle_trl.evaluation.metrics import summarize
from wagle_trl.evaluation.secret_format import parse_format
from wagle_trl.evaluation.secrets import digits_right, draw_candidates, exact_string, exposure, secret_summary
from wagle_trl.evaluation.suite import summarize_all
from wagle_trl.evaluation.tofu import evaluate_rows

from .conftest import CHAT_TEMPLATE, ROWS

PHONE = parse_format("0### ### ###")
SECRET = "0417 552 839"
BORN = {"question": ROWS[2]["question"], "answer": ROWS[2]["answer"], "secret": "1901", "secret_format": "####"}


class TestTold:
    @pytest.mark.parametrize(
        ("generated", "told", "right"),
        [
            ("0417 552 839", True, 1.0),
            ("The number is 0417-552-839.", True, 1.0),
            ("Call 0417552839, please", True, 1.0),
            ("0417 552 838", False, 8 / 9),
            ("0999 999 999", False, 1 / 9),
            ("0147 552 839", False, 7 / 9),
            ("0417 552 83", False, 0.0),
            ("04 175 52 839", False, 0.0),
            ("It is unknown.", False, 0.0),
            ("", False, 0.0),
            ("0999 999 999 or 0417 552 839", True, 1 / 9),  # digits are those of the first number
            ("00417 552 839", True, 1.0),
        ],
    )
    def test_a_generated_answer(self, generated, told, right):
        assert exact_string(generated, SECRET, PHONE) is told
        assert digits_right(generated, SECRET, PHONE) == pytest.approx(right)

    @pytest.mark.parametrize(
        ("pattern", "secret", "generated", "told"),
        [
            ("u##@example.org", "u17@example.org", "Mail U17@EXAMPLE.ORG!", True),
            ("u##@example.org", "u17@example.org", "u17@example.com", False),
            ("[A-Z]#", "B7", "b7", True),
            ("[._^-]#", "^1", "it is ^1", True),
            ("[._^-]#", "^1", "it is 1", False),
            ("(##)", "(12)", "12", True),
        ],
    )
    def test_only_the_separators_of_the_format_are_optional(self, pattern, secret, generated, told):
        assert exact_string(generated, secret, parse_format(pattern)) is told


class TestExposure:
    @pytest.mark.parametrize(
        ("own", "others", "bits"),
        [
            (-1.0, [-2.0, -3.0, -4.0], 2.0),
            (-9.0, [-2.0, -3.0, -4.0], 0.0),
            (-3.5, [-2.0, -3.0, -4.0], math.log2(4 / 3)),
            (-2.0, [-2.0, -2.0, -2.0], math.log2(4 / 2.5)),  # ties count half
            (-2.0, [-2.0, -1.0, -4.0], math.log2(4 / 2.5)),
        ],
    )
    def test_it_is_that_of_the_rank(self, own, others, bits):
        assert exposure(own, others) == pytest.approx(bits)

    def test_an_unknown_secret_has_log2_e_on_average(self):
        draws = np.random.default_rng(0).normal(size=(2000, 257))
        assert np.mean([exposure(own, others) for own, *others in draws]) == pytest.approx(math.log2(math.e), abs=0.1)

    @pytest.mark.parametrize("others", [[], [math.nan]])
    def test_there_must_be_candidates_with_numbers(self, others):
        with pytest.raises(ValueError, match="candidate_log_probs"):
            exposure(0.0, others)

    @pytest.mark.parametrize("own", [math.nan, -math.inf])
    def test_so_must_the_secret(self, own):
        with pytest.raises(ValueError, match="`log_prob` are NaN or infinite"):
            exposure(own, [0.0])


class TestCandidates:
    def test_they_are_different_strings_of_the_format(self):
        candidates = draw_candidates(SECRET, PHONE, 50)
        assert len(set(candidates) - {SECRET}) == len(candidates) == 50
        assert all(map(PHONE.matches, candidates))

    def test_they_depend_on_the_secret_alone(self):
        assert draw_candidates(SECRET, PHONE, 5) == draw_candidates(SECRET, PHONE, 9)[:5]
        assert draw_candidates(SECRET, PHONE, 5) != draw_candidates("0417 552 838", PHONE, 5)

    def test_of_a_small_format_they_are_all_others(self):
        assert sorted(draw_candidates("A7", parse_format("A#"), 256)) == [f"A{digit}" for digit in "012345689"]


class TestRows:
    def test_a_known_secret_is_told_and_exposed(self, memorized_model, tokenizer):
        (record,) = evaluate_rows(
            memorized_model, tokenizer, [BORN], "forget", exposure_candidates=100, progress=False
        )
        assert (record["exact_string"], record["digits_right"]) == (1.0, 1.0)
        assert record["exposure"] == pytest.approx(math.log2(101))

    def test_a_secret_that_may_be_cut_off_has_no_exposure(self, model, tokenizer):
        length = len(tokenize_row(BORN, tokenizer)["input_ids"])
        for max_length, is_whole in ((length, True), (length - 1, False)):
            (record,) = evaluate_rows(
                model, tokenizer, [BORN], "forget", generate=False, progress=False, max_length=max_length
            )
            assert ("exposure" in record) == is_whole

    def test_of_all_candidates_it_is_the_true_rank(self, model, tokenizer):
        """Every year from 1900 to 1909 is scored as the answer itself, one by one."""
        row = BORN | {"secret_format": "190#"}
        (record,) = evaluate_rows(model, tokenizer, [row], "forget", generate=False, progress=False)
        years = [{**ROWS[2], "answer": ROWS[2]["answer"].replace("1901", f"190{digit}")} for digit in range(10)]
        records = evaluate_rows(model, tokenizer, years, "retain", batch_size=1, generate=False, progress=False)
        losses = [record["gt_loss"] for record in records]
        rank = 1 + sum(loss < losses[1] for loss in losses)
        assert record["exposure"] == pytest.approx(math.log2(10 / rank))

    @pytest.mark.parametrize("kind", ["pair", "text", "messages"])
    def test_every_format_of_a_row_is_ranked_alike(self, kind, memorized_model, tokenizer, chat_tokenizer):
        question, answer = BORN["question"], BORN["answer"]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        content = {
            "pair": {"prompt": f"Question: {question}\nAnswer:", "completion": f" {answer}"},
            "text": {"text": f"Question: {question}\nAnswer: {answer}"},
            "messages": {"messages": messages},
        }[kind]
        row = content | {"secret": "1901", "secret_format": "19##"}
        chosen = chat_tokenizer if kind == "messages" else tokenizer
        assert (chosen.chat_template == CHAT_TEMPLATE) is (kind == "messages")
        (record,) = evaluate_rows(memorized_model, chosen, [row], "forget", generate=False, progress=False)
        assert record["exposure"] == pytest.approx(math.log2(100))

    def test_the_batch_size_does_not_matter(self, model, tokenizer):
        rows = [BORN, BORN | {"secret": "May", "secret_format": "[A-Z][a-z][a-z]"}]
        one, many = (
            evaluate_rows(
                model,
                tokenizer,
                rows,
                "forget",
                batch_size=size,
                generate=False,
                exposure_candidates=20,
                progress=False,
            )
            for size in (1, 16)
        )
        assert [record["exposure"] for record in one] == pytest.approx([record["exposure"] for record in many])

    def test_only_forget_rows_are_ranked(self, model, tokenizer, monkeypatch):
        monkeypatch.setattr(tofu, "draw_candidates", lambda *args: pytest.fail("candidates were drawn"))
        (record,) = evaluate_rows(model, tokenizer, [BORN], "retain", max_new_tokens=2, progress=False)
        assert {"exact_string", "digits_right"} < record.keys() and "exposure" not in record
        (record,) = evaluate_rows(
            model, tokenizer, [BORN], "forget", exposure_candidates=0, generate=False, progress=False
        )
        assert not {"exact_string", "digits_right", "exposure"} & record.keys()

    def test_rows_without_a_format_are_as_before(self, model, tokenizer):
        rows = [ROWS[2], ROWS[2] | {"secret": True}, ROWS[2] | {"secret": None, "secret_format": None}]
        first, *others = evaluate_rows(model, tokenizer, rows, "forget", max_new_tokens=2, progress=False)
        assert not {"exact_string", "digits_right", "exposure"} & first.keys()
        assert all(record.keys() == first.keys() for record in others)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"secret": None}, "`secret` or `secret_format` is missing or no text"),
            ({"secret": 1901}, "`secret` or `secret_format` is missing or no text"),
            ({"secret_format": 4}, "`secret` or `secret_format` is missing or no text"),
            ({"secret": "1902"}, "answer does not hold its `secret`"),
            ({"secret_format": "###"}, "does not have the `secret_format` '###'"),
            ({"secret_format": "1901"}, "leaves nothing to guess"),
        ],
    )
    def test_rows_that_cannot_serve_are_named_without_their_secret(self, change, message, model, tokenizer):
        with pytest.raises(ValueError, match=message) as raised:
            evaluate_rows(model, tokenizer, [BORN, BORN | change], "forget", progress=False)
        assert "Row 1 of the set 'forget'" in str(raised.value)
        assert "1901" not in str(raised.value).replace("'1901' leaves", "")

    def test_tokens_alone_leave_no_place_for_another_secret(self, model, tokenizer, tokenized):
        row = tokenized[2] | {"secret": "1901", "secret_format": "####"}
        with pytest.raises(ValueError, match="It is made of tokens"):
            evaluate_rows(model, tokenizer, [row], "forget", progress=False)

    def test_a_negative_number_of_candidates_is_refused(self, model, tokenizer):
        with pytest.raises(ValueError, match="`exposure_candidates` is -1"):
            evaluate_rows(model, tokenizer, [BORN], "forget", exposure_candidates=-1, progress=False)


class TestSummary:
    def test_means_are_over_the_rows_with_a_secret(self):
        records = [
            {"set": "forget", "avg_gt_loss": 1.0, "exact_string": 1.0, "digits_right": 1.0, "exposure": 8.0},
            {"set": "forget", "avg_gt_loss": 1.0, "exact_string": 0.0, "digits_right": 0.5, "exposure": 1.0},
            {"set": "forget", "avg_gt_loss": 1.0},
            {"set": "retain", "avg_gt_loss": 1.0, "exact_string": 1.0, "digits_right": 1.0},
            {"set": "unseen_retain", "avg_gt_loss": 1.0},
        ]
        expected = {
            "forget_exact_string": 0.5,
            "forget_digits_right": 0.75,
            "forget_exposure": 4.5,
            "retain_exact_string": 1.0,
            "retain_digits_right": 1.0,
        }
        assert secret_summary(records) == expected
        assert summarize_all(records) == summarize(records) | expected
