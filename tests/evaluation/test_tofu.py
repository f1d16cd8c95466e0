import json
import math
import zlib
from pathlib import Path

import pytest
from datasets import Dataset
from trl.trainer.utils import add_fused_lm_head

from wagle_trl.data.formats import to_prompt_completion
from wagle_trl.data.tokenization import tokenize_row
from wagle_trl.evaluation.inference import answer_likelihoods, answer_losses
from wagle_trl.evaluation.metrics import summarize
from wagle_trl.evaluation.tofu import evaluate_rows, read_records, write_records

from .conftest import ROWS

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_tofu = pytest.mark.skipif(not DATA.is_dir(), reason="the TOFU rows and logs are not on this machine")

MEMORY_FIELDS = {"exact_memorization", "extraction_strength", "min_k", "min_k_plus_plus", "mia_k", "zlib_bytes"}


class TestEvaluateRows:
    def test_a_memorized_set_is_known_by_every_metric(self, memorized_model, tokenizer):
        records = evaluate_rows(memorized_model, tokenizer, ROWS, "forget", batch_size=2, progress=False)
        assert [record["generated"] for record in records] == [row["answer"] for row in ROWS]
        summary = summarize(records)
        assert summary["forget_prob"] > 0.9
        assert summary["forget_rougeL_recall"] == 1.0

    @needs_tofu
    def test_a_record_has_the_keys_of_the_authors_logs(self, model, tokenizer):
        log = read_records(DATA / "tofu_eval_logs" / "llama2-7b_full.jsonl")[0]
        (record,) = evaluate_rows(model, tokenizer, ROWS[:1], "forget", max_new_tokens=2, progress=False)
        assert log.keys() - record.keys() == {"rouge1_recall"}
        assert record.keys() - log.keys() == MEMORY_FIELDS | {"rougeL_recall_unicode"}
        for key in record.keys() & log.keys():
            assert type(record[key]) is type(log[key]), key

    def test_losses_of_a_record_are_those_of_its_answers(self, model, tokenizer):
        row = ROWS[0]
        (record,) = evaluate_rows(model, tokenizer, [row], "forget", generate=False, progress=False)
        answers = [row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]]
        tokenized = [tokenize_row({"question": row["question"], "answer": answer}, tokenizer) for answer in answers]
        (gt, paraphrased, *perturbed), (num_gt, _, *num_perturbed) = answer_losses(
            model, tokenized, 1, tokenizer.pad_token_id
        )
        assert record["avg_gt_loss"] == pytest.approx(gt, rel=1e-5, abs=1e-5)
        assert record["gt_loss"] == pytest.approx(gt * num_gt, abs=1e-3)
        assert record["avg_paraphrased_loss"] == pytest.approx(paraphrased, rel=1e-5, abs=1e-5)
        assert record["average_perturb_loss"] == pytest.approx(perturbed, rel=1e-5, abs=1e-5)
        assert record["num_token_perturb"] == num_perturbed
        assert record["truth_ratio"] == pytest.approx(math.exp(paraphrased - sum(perturbed) / 3), rel=1e-4)

    def test_without_a_paraphrase_the_answer_stands_in_for_it(self, model, tokenizer):
        (record,) = evaluate_rows(model, tokenizer, ROWS[1:2], "real_authors", generate=False, progress=False)
        assert record["avg_paraphrased_loss"] == record["avg_gt_loss"]
        assert record["num_token_paraphrased"] == record["num_token_gt"]
        assert len(record["average_perturb_loss"]) == 2

    def test_rouge_has_no_value_where_it_sees_no_word_and_says_why(self, model, tokenizer, caplog):
        rows = [{"question": "Where?", "answer": answer} for answer in ("In Oslo.", "В Осло.", "オスロ")]
        records = evaluate_rows(model, tokenizer, rows, "forget", max_new_tokens=2, progress=False)
        assert [record.get("rougeL_recall") is None for record in records] == [False, True, True]
        assert all("rougeL_recall_unicode" in record for record in records)
        assert [line for line in caplog.messages if "no value for 2 of 3 rows of the set 'forget'" in line]
        summary = summarize(records)
        assert "forget_rougeL_recall" not in summary and "forget_rougeL_recall_unicode" in summary

    def test_without_perturbed_answers_there_is_no_truth_ratio(self, model, tokenizer):
        (record,) = evaluate_rows(model, tokenizer, ROWS[2:], "holdout", max_new_tokens=2, progress=False)
        assert record.keys() == {
            *("set", "index", "question", "answer", "avg_gt_loss", "gt_loss", "num_token_gt"),
            *("generated", "rougeL_recall", "rougeL_recall_unicode"),
            *MEMORY_FIELDS,
        }

    def test_a_dataset_with_missing_columns_is_the_same_as_a_list(self, model, tokenizer):
        from_list = evaluate_rows(model, tokenizer, ROWS, "forget", generate=False, progress=False)
        dataset = Dataset.from_list(ROWS)
        assert dataset[2]["perturbed_answer"] is None
        assert evaluate_rows(model, tokenizer, dataset, "forget", generate=False, progress=False) == from_list

    def test_the_batch_size_does_not_matter(self, model, tokenizer):
        one, many = (
            evaluate_rows(model, tokenizer, ROWS, "forget", batch_size=size, max_new_tokens=4, progress=False)
            for size in (1, 16)
        )
        for first, second in zip(one, many, strict=True):
            assert first.keys() == second.keys()
            for key, value in first.items():
                is_number = isinstance(value, float | list)
                assert second[key] == (pytest.approx(value, rel=1e-5, abs=1e-5) if is_number else value), key

    def test_in_bf16_batch_sizes_differ_by_the_rounding_of_the_model_alone(self, model, tokenizer):
        model.bfloat16()
        one, many = (
            evaluate_rows(model, tokenizer, ROWS, "forget", batch_size=size, generate=False, progress=False)
            for size in (1, 16)
        )
        for first, second in zip(one, many, strict=True):
            for key in ("avg_gt_loss", "min_k", "min_k_plus_plus"):
                assert first[key] == pytest.approx(second[key], rel=2**-6), key  # bf16 has 8 significant bits

    def test_fields_of_memory_are_those_of_the_answers_own_tokens(self, model, tokenizer):
        (record,) = evaluate_rows(model, tokenizer, ROWS[:1], "forget", generate=False, mia_k=0.5, progress=False)
        tokens = tokenize_row(ROWS[0], tokenizer)
        (score,) = answer_likelihoods(model, [tokens], 1, tokenizer.pad_token_id)
        half = len(score.log_probs) // 2
        assert record["min_k"] == pytest.approx(sum(sorted(score.log_probs)[:half]) / half, rel=1e-5, abs=1e-5)
        assert record["min_k_plus_plus"] == pytest.approx(
            sum(sorted(score.z_scores)[:half]) / half, rel=1e-5, abs=1e-5
        )
        assert record["exact_memorization"] == sum(score.correct) / len(score.correct)
        assert record["mia_k"] == 0.5
        assert record["zlib_bytes"] == len(zlib.compress(ROWS[0]["answer"].encode()))

    def test_a_memorized_answer_is_extracted_by_its_prompt_alone(self, memorized_model, tokenizer):
        records = evaluate_rows(memorized_model, tokenizer, ROWS, "forget", generate=False, progress=False)
        assert [record["extraction_strength"] for record in records] == [1.0] * 3
        assert [record["exact_memorization"] for record in records] == [1.0] * 3

    @pytest.mark.parametrize("kind", ["prompt-completion", "tokenized"])
    def test_every_format_of_a_row_gives_the_same_record(self, memorized_model, tokenizer, kind):
        plain = [{"question": row["question"], "answer": row["answer"]} for row in ROWS]
        convert = {"prompt-completion": to_prompt_completion, "tokenized": tokenize_row}[kind]
        expected = evaluate_rows(memorized_model, tokenizer, plain, "forget", progress=False)
        records = evaluate_rows(
            memorized_model, tokenizer, [convert(row, tokenizer) for row in plain], "forget", progress=False
        )
        for record, other in zip(records, expected):
            assert record.pop("question") in f"Question: {other.pop('question')}\nAnswer:"
            assert record == other

    def test_conversations_are_judged_on_their_last_message(self, model, chat_tokenizer):
        row = ROWS[0]
        pair = to_prompt_completion(row, chat_tokenizer)
        alternatives = {key: row[key] for key in ("paraphrased_answer", "perturbed_answer")}
        rows = [row, pair | alternatives, {"messages": pair["prompt"] + pair["completion"]} | alternatives]
        records = evaluate_rows(model, chat_tokenizer, rows, "forget", batch_size=1, max_new_tokens=4, progress=False)
        assert [record.pop("index") for record in records] == [0, 1, 2]
        assert records[0] == records[1] == records[2]
        assert records[0]["question"] == row["question"]

    @pytest.mark.parametrize("alternative", [" plays.", "plays."])
    def test_alternatives_of_a_text_completion_begin_as_it_does(self, alternative, model, tokenizer):
        row = {"prompt": "Bo writes", "completion": " poems.", "perturbed_answer": [alternative]}
        (record,) = evaluate_rows(model, tokenizer, [row], "world_facts", generate=False, progress=False)
        tokenized = tokenize_row({"prompt": "Bo writes", "completion": " plays."}, tokenizer)
        losses, _ = answer_losses(model, [tokenized], 1, tokenizer.pad_token_id)
        assert record["average_perturb_loss"] == pytest.approx(losses, rel=1e-5, abs=1e-5)

    def test_plain_text_has_no_prompt_and_no_rouge(self, model, tokenizer):
        (record,) = evaluate_rows(model, tokenizer, [{"text": "Ada lives in a house."}], "retain", progress=False)
        assert record["answer"] == "Ada lives in a house."
        assert record["question"] == ""
        assert "generated" not in record
        assert "rougeL_recall" not in record

    def test_a_model_with_a_fused_lm_head_gives_the_same_records(self, model, tokenizer):
        plain = evaluate_rows(model, tokenizer, ROWS, "forget", max_new_tokens=4, progress=False)
        add_fused_lm_head(model)
        assert evaluate_rows(model, tokenizer, ROWS, "forget", max_new_tokens=4, progress=False) == plain

    @pytest.mark.parametrize("progress", [True, False])
    def test_a_progress_bar_is_shown_on_request(self, model, tokenizer, capsys, progress):
        evaluate_rows(model, tokenizer, ROWS, "forget", max_new_tokens=2, progress=progress)
        shown = capsys.readouterr().err
        assert ("Evaluating forget" in shown) is progress

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 0}, "`batch_size` is 0; it must be at least 1"),
            ({"max_new_tokens": 0}, "`max_new_tokens` is 0; it must be at least 1"),
            ({"mia_k": 0.0}, "`mia_k` is 0.0; it is a share of tokens"),
            ({"mia_k": 20.0}, "`mia_k` is 20.0; it is a share of tokens"),
        ],
    )
    def test_an_option_that_makes_no_sense_is_refused(self, model, tokenizer, options, message):
        with pytest.raises(ValueError, match=message):
            evaluate_rows(model, tokenizer, ROWS, "forget", **options)

    def test_an_empty_set_is_refused(self, model, tokenizer):
        with pytest.raises(ValueError, match="'forget' is empty"):
            evaluate_rows(model, tokenizer, [], "forget")

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"question": "Who?", "answer": " "}, "It has no answer: .*'Who"),
            ({"question": "Who?", "answer": None}, "It has no answer: .*'Who"),
            ({"question": "Who?", "answer": "Bo", "perturbed_answer": [""]}, "It has no completion: .*Who"),
            (
                {"question": "Who?", "answer": "Bo", "perturbed_answer": [None]},
                "Its `perturbed_answer` is not a list of",
            ),
            (
                {"question": "Who?", "answer": "Bo", "perturbed_answer": "Cy"},
                "Its `perturbed_answer` is not a list of",
            ),
            ({"prompt": "Who?", "completion": None}, "It has no completion: .*'Who"),
            ({"input_ids": [5, 6], "labels": [-100, -100]}, "It has no answer: all its labels are -100"),
            ({"input_ids": [5, 1], "labels": [-100, 1]}, "Its answer is empty"),
        ],
        ids=[
            "empty text",
            "null",
            "empty among the perturbed",
            "null among the perturbed",
            "perturbed text",
            "null completion",
            "no labels",
            "only a special token",
        ],
    )
    def test_a_row_without_answer_is_named(self, model, tokenizer, row, message):
        with pytest.raises(ValueError, match=f"Row 1 of the set 'forget' cannot be evaluated. {message}"):
            evaluate_rows(model, tokenizer, [ROWS[0], row], "forget", progress=False)

    def test_columns_that_a_row_lacks_may_be_none(self, model, tokenizer):
        columns = ("question", "answer", "paraphrased_answer", "perturbed_answer", "prompt")
        pair = {"prompt": "Bo writes", "completion": " poems.", "perturbed_answer": [" plays."]}
        rows = [*ROWS, pair]
        filled = [*({name: row.get(name) for name in columns} for row in ROWS), pair | {"question": None}]
        plain = evaluate_rows(model, tokenizer, rows, "forget", generate=False, progress=False)
        assert evaluate_rows(model, tokenizer, filled, "forget", generate=False, progress=False) == plain

    @needs_tofu
    def test_the_four_tofu_sets_give_all_thirteen_aggregates(self, model, tokenizer):
        files = {
            "forget": "forget10_perturbed",
            "retain": "retain_perturbed",
            "real_authors": "real_authors_perturbed",
            "world_facts": "world_facts_perturbed",
        }
        records = []
        for name, file in files.items():
            rows = read_records(DATA / "tofu" / f"{file}.jsonl")[:3]
            records += evaluate_rows(model, tokenizer, rows, name, max_new_tokens=2, progress=False)
        expected = json.loads((DATA / "tofu_eval_logs" / "summary.json").read_text(encoding="utf-8"))
        assert summarize(records).keys() == expected["llama2-7b_full"].keys()


class TestRecords:
    def test_records_survive_a_round_trip(self, tmp_path):
        records = [
            {"set": "forget", "answer": "Tromsø\u2028\nline", "avg_gt_loss": 0.1 + 0.2},
            {"perturb_loss": [1e-30]},
        ]
        assert read_records(write_records(records, tmp_path / "records.jsonl")) == records

    def test_one_record_is_one_line(self, tmp_path):
        path = write_records([{"answer": "a\nb"}, {"answer": "c"}], tmp_path / "records.jsonl")
        assert len(path.read_text(encoding="utf-8").splitlines()) == 2

    def test_an_interrupted_write_leaves_the_earlier_file_and_nothing_else(self, tmp_path):
        path = write_records([{"index": 0}], tmp_path / "records.jsonl")

        def interrupted():
            yield {"index": 1}
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_records(interrupted(), path)
        assert read_records(path) == [{"index": 0}]
        assert list(tmp_path.iterdir()) == [path]

    def test_nan_is_never_written(self, tmp_path):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_records([{"avg_gt_loss": math.nan}], tmp_path / "records.jsonl")
        assert list(tmp_path.iterdir()) == []

    def test_a_truncated_file_names_its_bad_line(self, tmp_path):
        path = tmp_path / "records.jsonl"
        path.write_text('{"index": 0}\n{"index": ', encoding="utf-8")
        with pytest.raises(ValueError, match="line 2"):
            read_records(path)
