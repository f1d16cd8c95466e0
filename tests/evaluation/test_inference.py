import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast
from trl.trainer.utils import add_fused_lm_head

from wagle_trl.data.formats import to_prompt_completion
from wagle_trl.data.tokenization import tokenize_row
from wagle_trl.evaluation.inference import answer_likelihoods, answer_losses, generate_answers, token_likelihoods

from .conftest import ROWS


class TestAnswerLosses:
    def test_the_loss_is_the_models_own_on_the_labels(self, model, tokenizer, tokenized):
        losses, counts = answer_losses(model, tokenized, batch_size=2, pad_token_id=tokenizer.pad_token_id)
        for row, loss, count in zip(tokenized, losses, counts):
            with torch.no_grad():
                expected = model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
            assert loss == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
            assert count == sum(label != -100 for label in row["labels"])

    @pytest.mark.parametrize("batch_size", [2, 3, 16])
    def test_the_batch_size_does_not_matter(self, model, tokenizer, tokenized, batch_size):
        one_by_one = answer_losses(model, tokenized, 1, tokenizer.pad_token_id)
        batched = answer_losses(model, tokenized, batch_size, tokenizer.pad_token_id)
        assert batched[0] == pytest.approx(one_by_one[0], rel=1e-5, abs=1e-5)
        assert batched[1] == one_by_one[1]

    def test_results_come_in_the_order_of_the_rows(self, model, tokenizer, tokenized):
        forward, _ = answer_losses(model, tokenized, 2, tokenizer.pad_token_id)
        backward, _ = answer_losses(model, tokenized[::-1], 2, tokenizer.pad_token_id)
        assert backward[::-1] == pytest.approx(forward, rel=1e-5, abs=1e-5)

    def test_the_padding_token_does_not_matter(self, model, tokenizer, tokenized):
        with_pad, _ = answer_losses(model, tokenized, 3, tokenizer.pad_token_id)
        with_other, _ = answer_losses(model, tokenized, 3, 17)
        assert with_pad == with_other

    def test_a_fused_lm_head_changes_nothing(self, model, tokenizer, tokenized):
        plain = answer_losses(model, tokenized, 2, tokenizer.pad_token_id)
        add_fused_lm_head(model)
        assert answer_losses(model, tokenized, 2, tokenizer.pad_token_id) == plain

    def test_the_softmax_of_a_bf16_model_is_in_fp32(self, model, tokenizer, tokenized):
        model.bfloat16()
        row = tokenized[0]
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1].double()
        expected = cross_entropy(logits, torch.tensor(row["labels"][1:])).item()
        assert answer_losses(model, [row], 1, tokenizer.pad_token_id)[0][0] == pytest.approx(
            expected, rel=1e-5, abs=1e-5
        )

    @pytest.mark.parametrize("training", [True, False])
    def test_the_mode_is_restored_and_no_gradient_is_left(self, model, tokenizer, tokenized, training):
        model.train(training)
        answer_losses(model, tokenized, 2, tokenizer.pad_token_id)
        assert model.training is training
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_the_mode_is_restored_after_an_error(self, model, tokenizer):
        model.train()
        with pytest.raises(IndexError):
            answer_losses(model, [{"input_ids": [10**6] * 2, "labels": [3, 3]}], 1, tokenizer.pad_token_id)
        assert model.training

    def test_dropout_is_off(self, model, tokenizer, tokenized):
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        model.train()
        first = answer_losses(model, tokenized, 2, tokenizer.pad_token_id)
        assert answer_losses(model, tokenized, 2, tokenizer.pad_token_id) == first

    def test_a_row_without_answer_tokens_is_named(self, model, tokenizer, tokenized):
        rows = [tokenized[0], {"input_ids": [5, 6], "labels": [5, -100]}]
        with pytest.raises(ValueError, match="Row 1 has no answer tokens"):
            answer_losses(model, rows, 2, tokenizer.pad_token_id)

    def test_a_diverged_model_is_refused(self, model, tokenizer, tokenized):
        model.lm_head.weight.data[0] = math.nan
        with pytest.raises(ValueError, match="3 of 3 answers have a NaN or infinite loss"):
            answer_losses(model, tokenized, 2, tokenizer.pad_token_id)


LOG_2 = math.log(2)


class TestTokenScores:
    # Over three tokens p is 1/2, 1/4 and 1/4, so log p is -1, -2 and -2 times log 2: its mean is -1.5, its variance
    # 1/2 * 0.25 + 1/2 * 0.25 and its deviation 0.5 times log 2
    LOGITS = torch.tensor([[0.5, 0.25, 0.25]]).log()

    @pytest.mark.parametrize(("label", "expected"), [(0, [-LOG_2, 1.0, 1.0]), (2, [-2 * LOG_2, -1.0, 0.0])])
    def test_a_token_has_the_hand_computed_scores(self, label, expected):
        scores = token_likelihoods(self.LOGITS, torch.tensor([label]))
        torch.testing.assert_close(scores, torch.tensor(expected)[:, None])

    def test_a_constant_added_to_the_logits_changes_nothing(self):
        labels = torch.tensor([1])
        torch.testing.assert_close(token_likelihoods(self.LOGITS + 7, labels), token_likelihoods(self.LOGITS, labels))

    @pytest.mark.parametrize("lowest", [-math.inf, torch.finfo(torch.float32).min])
    def test_a_token_that_cannot_occur_changes_nothing(self, lowest):
        labels = torch.tensor([1])
        logits = torch.cat([self.LOGITS, torch.tensor([[lowest]])], dim=1)
        torch.testing.assert_close(token_likelihoods(logits, labels), token_likelihoods(self.LOGITS, labels))

    def test_a_model_without_doubt_has_finite_scores(self):
        scores = token_likelihoods(torch.tensor([[1000.0, 0.0, 0.0]] * 2), torch.tensor([0, 1]))
        assert scores.isfinite().all()
        assert scores[:, 0].tolist() == [0.0, 0.0, 1.0]

    @pytest.mark.parametrize("batch_size", [2, 16])
    def test_the_batch_size_does_not_matter(self, model, tokenizer, tokenized, batch_size):
        one_by_one = answer_likelihoods(model, tokenized, 1, tokenizer.pad_token_id)
        batched = answer_likelihoods(model, tokenized, batch_size, tokenizer.pad_token_id)
        for first, second in zip(one_by_one, batched, strict=True):
            assert second.log_probs == pytest.approx(first.log_probs, rel=1e-5, abs=1e-5)
            assert second.z_scores == pytest.approx(first.z_scores, rel=1e-5, abs=1e-5)
            assert second.correct == first.correct

    def test_a_token_is_right_where_greedy_decoding_produces_it(self, memorized_model, tokenizer, tokenized):
        wrong_end = {name: list(values) for name, values in tokenized[0].items()}
        wrong_end["input_ids"][-1] = wrong_end["labels"][-1] = 17
        right, wrong = answer_likelihoods(memorized_model, [tokenized[0], wrong_end], 2, tokenizer.pad_token_id)
        assert all(right.correct)
        assert wrong.correct == [*right.correct[:-1], False]


class TestGenerateAnswers:
    def test_a_memorized_answer_comes_back_and_stops_at_its_end(self, memorized_model, tokenizer):
        prompts = [to_prompt_completion(row, tokenizer)["prompt"] for row in ROWS]
        answers = generate_answers(memorized_model, tokenizer, prompts, batch_size=2)
        assert answers == [row["answer"] for row in ROWS]

    def test_text_and_token_ids_are_the_same_prompt(self, model, tokenizer):
        prompts = [to_prompt_completion(row, tokenizer)["prompt"] for row in ROWS]
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        assert generate_answers(model, tokenizer, prompts, 2, 8) == generate_answers(model, tokenizer, ids, 2, 8)

    def test_messages_go_through_the_chat_template(self, model, chat_tokenizer):
        messages = [[{"role": "user", "content": "Where?"}]]
        text = ["<user>Where?<eos><assistant>"]
        assert generate_answers(model, chat_tokenizer, messages, 1, 8) == generate_answers(
            model, chat_tokenizer, text, 1, 8
        )

    def test_the_batch_size_does_not_matter(self, memorized_model, tokenizer):
        prompts = ["Question: Where", "Question: What does Bo write?\nAnswer:", "When was Cy born, and"]
        one_by_one = generate_answers(memorized_model, tokenizer, prompts, 1, 12)
        assert generate_answers(memorized_model, tokenizer, prompts, 3, 12) == one_by_one

    def test_the_models_own_sampling_settings_are_ignored(self, model, tokenizer):
        greedy = generate_answers(model, tokenizer, ["Where does Ada"], 1, 12)
        model.generation_config.update(
            do_sample=True, temperature=9.0, repetition_penalty=5.0, num_beams=2, max_length=4
        )
        assert generate_answers(model, tokenizer, ["Where does Ada"], 1, 12) == greedy

    def test_the_models_own_end_token_stops_it_too(self, memorized_model, tokenizer):
        prompt = to_prompt_completion(ROWS[0], tokenizer)["prompt"]
        model = copy.deepcopy(memorized_model)
        house = tokenize_row(ROWS[0], tokenizer)["input_ids"][-5]
        model.generation_config.eos_token_id = [house]
        (answer,) = generate_answers(model, tokenizer, [prompt], 1)
        assert answer != ROWS[0]["answer"]
        assert ROWS[0]["answer"].startswith(answer)

    def test_no_more_than_max_new_tokens_are_made(self, model, tokenizer):
        (answer,) = generate_answers(model, tokenizer, ["Where does Ada"], 1, max_new_tokens=1)
        assert len(tokenizer(answer)["input_ids"]) <= 3  # half a character decodes to a replacement of three bytes

    def test_the_tokenizer_and_the_models_mode_stay_as_they_were(self, model, tokenizer):
        tokenizer.padding_side = "right"
        model.train()
        generate_answers(model, tokenizer, ["Where", "Where does Ada"], 2, 2)
        assert tokenizer.padding_side == "right"
        assert model.training

    def test_a_tokenizer_without_padding_token_works(self, memorized_model, tokenizer):
        bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>")
        prompts = [to_prompt_completion(row, tokenizer)["prompt"] for row in ROWS]
        assert generate_answers(memorized_model, bare, prompts, 3) == [row["answer"] for row in ROWS]

    def test_a_continuation_ends_before_a_stop_string(self, memorized_model, tokenizer):
        prompts = [to_prompt_completion(row, tokenizer)["prompt"] for row in ROWS]
        answers = generate_answers(memorized_model, tokenizer, prompts, 3, stop_strings=[" by the", "house", "em"])
        assert answers == ["Ada lives in a", "Po", ROWS[2]["answer"]]

    def test_a_sampled_continuation_depends_on_its_seed_alone(self, model, tokenizer):
        prompts, seeds = ["Where does Ada", "When", "Where does Ada"], [(0, 1), (0, 2), (0, 3)]
        together = generate_answers(model, tokenizer, prompts, 3, 8, seeds=seeds)
        assert generate_answers(model, tokenizer, prompts, 1, 8, seeds=seeds) == together
        assert together[0] != together[2]

    def test_near_temperature_0_sampling_is_greedy(self, model, tokenizer):
        sampled = generate_answers(model, tokenizer, ["Where does Ada"], 1, 8, seeds=[(0,)], temperature=1e-4)
        assert sampled == generate_answers(model, tokenizer, ["Where does Ada"], 1, 8)

    def test_an_empty_prompt_is_refused(self, model, tokenizer):
        with pytest.raises(ValueError, match="prompt is empty"):
            generate_answers(model, tokenizer, [""], 1)
