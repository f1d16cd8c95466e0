import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from wagle_trl.data.tokenization import tokenize_row
from wagle_trl.evaluation.attacks import (
    has_bitsandbytes,
    paraphrased,
    quantized,
    relearn,
    relearn_split,
    round_to_nearest,
    round_with_bitsandbytes,
)
from wagle_trl.evaluation.inference import answer_losses
from wagle_trl.evaluation.metrics import summarize
from wagle_trl.evaluation.tofu import evaluate_rows

from .conftest import ROWS


@pytest.fixture
def rows(forget_rows):
    return forget_rows.to_list()


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


class TestRelearn:
    @pytest.fixture
    def attack(self, tiny_tokenizer, rows):
        def attack(model, attacked_rows=rows, **options):
            options = {"share": 0.5, "steps": 4, "learning_rate": 1e-2, "every": 2, "progress": False} | options
            return relearn(model, tiny_tokenizer, attacked_rows, **options)

        return attack

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("training", [True, False])
    def test_the_model_stays_as_it_was(self, tiny_model, attack, dtype, training):
        model = tiny_model(dtype=dtype).train(training)
        before = weights_of(model)
        curve = attack(model)
        assert changed(before, weights_of(model)) == set()
        assert changed(before, weights_of(curve.model.to(dtype)))
        assert model.training is training and model.dtype is dtype
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_a_model_of_a_trainer_learns_again_as_a_loaded_one_does(self, tiny_model, attack, make_trainer):
        trained = make_trainer(max_steps=1).model  # its forward is bound to it, also in a copy
        loaded = tiny_model()
        loaded.load_state_dict(trained.state_dict())
        assert attack(trained).probabilities == attack(loaded).probabilities

    def test_every_weight_is_trained_even_a_frozen_one(self, tiny_model, attack):
        model = tiny_model().requires_grad_(False)
        curve = attack(model)
        trained = changed(weights_of(model), weights_of(curve.model))
        assert trained == {name for name, _ in model.named_parameters()}

    @pytest.mark.parametrize(
        ("num_rows", "share", "count"), [(10, 0.2, 2), (6, 0.2, 1), (2, 0.01, 1), (3, 0.99, 2), (400, 0.2, 80)]
    )
    def test_a_share_is_trained_on_at_least_one_and_not_all(self, num_rows, share, count):
        trained, rest = relearn_split(num_rows, share, seed=3)
        assert len(trained) == count
        assert sorted(trained + rest) == list(range(num_rows))

    def test_the_result_depends_on_the_trained_rows_alone(self, tiny_model, attack, rows):
        model = tiny_model()
        curve = attack(model)
        other = [dict(row) for row in rows]
        other[curve.rest[0]]["completion"] = " Nobody knows."
        same = attack(model, other)
        assert changed(weights_of(curve.model), weights_of(same.model)) == set()
        other = [dict(row) for row in rows]
        other[curve.trained[0]]["completion"] = " Nobody knows."
        assert changed(weights_of(curve.model), weights_of(attack(model, other).model))

    def test_the_curve_is_the_probability_of_the_rest(self, tiny_model, tiny_tokenizer, attack, rows):
        model = tiny_model()
        curve = attack(model)
        assert curve.steps == [0, 2, 4]
        rest = [rows[i] for i in curve.rest]
        for measured, probability in ((model, curve.probabilities[0]), (curve.model, curve.probabilities[-1])):
            records = evaluate_rows(measured, tiny_tokenizer, rest, "forget", generate=False, progress=False)
            assert probability == pytest.approx(summarize(records)["forget_prob"], rel=1e-5)

    def test_the_last_step_is_measured(self, tiny_model, attack):
        assert attack(tiny_model(), steps=7, every=3).steps == [0, 3, 6, 7]
        assert attack(tiny_model(), steps=6, every=3).steps == [0, 3, 6]

    def test_it_is_adamw_on_the_loss_of_the_answers(self, tiny_model, tiny_tokenizer, attack, rows):
        model = tiny_model()
        curve = attack(model, share=0.01, steps=3)
        tokenized = tokenize_row(rows[curve.trained[0]], tiny_tokenizer)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
        for _ in range(3):
            model(**{name: torch.tensor([ids]) for name, ids in tokenized.items()}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(weights_of(curve.model), weights_of(model), rtol=1e-3, atol=1e-5)

    def test_every_row_of_its_part_is_trained_on(self, tiny_model, tiny_tokenizer, attack, rows):
        model = tiny_model()
        curve = attack(model, steps=60, batch_size=2)
        part = [tokenize_row(rows[i], tiny_tokenizer) for i in curve.trained]
        losses, _ = answer_losses(curve.model, part, 8, tiny_tokenizer.pad_token_id)
        assert max(losses) < 0.1 * min(answer_losses(model, part, 8, tiny_tokenizer.pad_token_id)[0])

    def test_what_rows_have_in_common_comes_back(self, tiny_model, attack, rows):
        curve = attack(tiny_model(), steps=30)
        assert curve.probabilities[-1] > 10 * curve.probabilities[0]

    def test_a_seed_gives_the_same_attack_again_and_another_seed_another(self, tiny_model, attack):
        model = tiny_model()
        first, again, other = attack(model, seed=1), attack(model, seed=1), attack(model, seed=2)
        assert first.trained == again.trained != other.trained
        assert first.probabilities == again.probabilities != other.probabilities
        assert changed(weights_of(first.model), weights_of(again.model)) == set()

    def test_the_global_random_state_takes_no_part(self, tiny_model, attack):
        model = tiny_model(attention_dropout=0.5)
        torch.manual_seed(0)
        first = attack(model)
        state = torch.get_rng_state()
        assert attack(model).probabilities == first.probabilities
        assert torch.equal(torch.get_rng_state(), state)

    def test_steps_too_small_for_bf16_move_the_copy_of_a_bf16_model(self, tiny_model, attack):
        curve = attack(tiny_model(dtype=torch.bfloat16), learning_rate=1e-5)
        norm = curve.model.model.norm.weight
        assert norm.dtype is torch.float32
        assert (norm != 1).all() and (norm.bfloat16() == 1).all()

    def test_flash_attention_makes_room_for_fp32(self, tiny_model, attack):
        model = tiny_model()
        model.config._attn_implementation_internal = "flash_attention_2"
        assert attack(model).model.config._attn_implementation == "sdpa"
        assert model.config._attn_implementation == "flash_attention_2"

    def test_tokenized_rows_are_attacked_as_their_text(self, tiny_model, tiny_tokenizer, attack, rows):
        tokenized = [tokenize_row(row, tiny_tokenizer) for row in rows]
        assert attack(tiny_model(), tokenized).probabilities == attack(tiny_model()).probabilities

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"share": 0.0}, "is 0.0; it must lie between 0 and 1"),
            ({"share": 1.0}, "is 1.0; it must lie between 0 and 1"),
            ({"steps": 0}, "`steps` of relearning is 0; it must be at least 1"),
            ({"batch_size": 0}, "`batch_size` of relearning is 0"),
            ({"every": 0}, "`every` of relearning is 0"),
            ({"learning_rate": 1e30}, r"learning rate 1e\+30, step 2: 3 of 3 answers have a NaN or infinite loss"),
        ],
    )
    def test_bad_options_are_named(self, tiny_model, attack, options, message):
        with pytest.raises(ValueError, match=message):
            attack(tiny_model(), **options)

    def test_a_single_row_is_refused(self, tiny_model, attack, rows):
        with pytest.raises(ValueError, match="at least 2, not 1"):
            attack(tiny_model(), rows[:1])


class TestRoundToNearest:
    def test_eight_bits_by_row_worked_out_by_hand(self):
        # Steps 127 / 127 = 1 and 254 / 127 = 2; the ties -1.5 and 2.5 go to the even level
        weight = torch.tensor([[127.0, -63.6, 0.4, 0.6], [254.0, -3.0, 1.1, 5.0]])
        expected = torch.tensor([[127.0, -64.0, 0.0, 1.0], [254.0, -4.0, 2.0, 4.0]])
        assert torch.equal(round_to_nearest(weight, 8), expected)

    def test_four_bits_by_group_worked_out_by_hand(self):
        # Steps 7 / 7 = 1, 14 / 7 = 2, none in a group of zeros, and 28 / 7 = 4
        weight = torch.tensor([[7.0, 3.4, -14.0, 3.2], [0.0, 0.0, 28.0, -5.0]])
        expected = torch.tensor([[7.0, 3.0, -14.0, 4.0], [0.0, 0.0, 28.0, -4.0]])
        assert torch.equal(round_to_nearest(weight, 4, group_size=2), expected)

    def test_the_last_group_of_a_row_may_be_smaller(self):
        weight = torch.tensor([[70.0, 1.0, 2.9], [7.0, 1.0, 0.7]])
        expected = torch.tensor([[70.0, 0.0, 2.9], [7.0, 1.0, 0.7]])
        torch.testing.assert_close(round_to_nearest(weight, 4, group_size=2), expected)

    @given(
        values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40),
        bits=st.sampled_from([4, 8]),
        rows=st.integers(1, 3),
        group_size=st.sampled_from([None, 1, 3, 64]),
    )
    def test_no_weight_moves_by_more_than_half_a_step(self, values, bits, rows, group_size):
        weight = torch.tensor(values * rows).view(rows, -1)
        rounded = round_to_nearest(weight, bits, group_size).double()
        for before, after in zip(
            weight.double().split(group_size or len(values), 1), rounded.split(group_size or len(values), 1)
        ):
            step = before.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            subnormal = torch.finfo(torch.float32).tiny  # a step smaller than that is not representable
            assert ((after - before).abs() <= step / 2 * (1 + 1e-4) + subnormal).all()
            assert all(len(levels.unique()) <= 2**bits - 1 for levels in after)

    def test_the_dtype_stays(self):
        assert round_to_nearest(torch.ones(2, 4, dtype=torch.bfloat16), 8).dtype is torch.bfloat16


class TestQuantized:
    @pytest.mark.parametrize("bits", [8, 4])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_linear_layers_of_the_blocks_are_rounded_and_the_model_stays_as_it_was(self, tiny_model, bits, dtype):
        model = tiny_model(dtype=dtype, hidden_size=128)  # two groups a row
        before = weights_of(model)
        after = weights_of(quantized(model, bits))
        assert changed(before, weights_of(model)) == set()
        assert changed(before, after) == {name for name in before if "_proj" in name}
        for name in changed(before, after):
            assert torch.equal(after[name], round_to_nearest(before[name], bits, {8: None, 4: 64}[bits]))

    @pytest.mark.parametrize("bits", [8, 4])
    def test_tied_embeddings_are_not_rounded(self, tiny_model, bits):
        model = tiny_model(tie_word_embeddings=True)
        attacked = quantized(model, bits)
        assert attacked.lm_head.weight is attacked.model.embed_tokens.weight
        assert torch.equal(attacked.lm_head.weight, model.lm_head.weight)

    def test_the_layers_of_gpt2_are_rounded_by_output(self):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=8))
        weight = model.transformer.h[0].mlp.c_fc.weight  # (in_features, out_features)
        attacked = quantized(model, 8).transformer.h[0].mlp.c_fc.weight
        assert not torch.equal(attacked, weight)
        assert torch.equal(attacked, round_to_nearest(weight.T, 8).T)

    def test_changes_smaller_than_half_a_step_are_undone(self, tiny_model):
        original = quantized(tiny_model(), 4)
        unlearned = copy.deepcopy(original)
        weight = unlearned.model.layers[0].mlp.up_proj.weight
        with torch.no_grad():
            weight[weight == 0] += 1e-3
        attacked = quantized(unlearned, 4)
        assert changed(weights_of(original), weights_of(unlearned)) == {"model.layers.0.mlp.up_proj.weight"}
        torch.testing.assert_close(weights_of(attacked), weights_of(original), rtol=1e-6, atol=1e-8)

    def test_fewer_bits_change_the_answers_more(self, model, tokenizer, tokenized):
        clean, _ = answer_losses(model, tokenized, 3, tokenizer.pad_token_id)
        eight, four = (answer_losses(quantized(model, b), tokenized, 3, tokenizer.pad_token_id)[0] for b in (8, 4))
        distance = [sum(abs(a - b) for a, b in zip(losses, clean)) for losses in (eight, four)]
        assert 0 < 2 * distance[0] < distance[1]

    def test_other_widths_are_refused(self, tiny_model):
        with pytest.raises(ValueError, match="Cannot quantize to 3 bits; expected 8 or 4"):
            quantized(tiny_model(), 3)

    def test_a_model_without_linear_layers_is_refused(self, tiny_model):
        with pytest.raises(ValueError, match="LlamaForCausalLM has no linear layers"):
            quantized(tiny_model(num_hidden_layers=0), 8)


SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}
ASSISTANT = {"role": "assistant", "content": "There."}
OTHERWISE = USER | {"content": "In what place?"}


class TestParaphrased:
    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            ({"question": "Where?", "answer": "There."}, {"question": "In what place?"}),
            ({"prompt": "Where?", "completion": " There."}, {"prompt": "In what place?"}),
            ({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, {"prompt": [SYSTEM, OTHERWISE]}),
            ({"messages": [SYSTEM, USER, ASSISTANT]}, {"messages": [SYSTEM, OTHERWISE, ASSISTANT]}),
        ],
        ids=["question", "prompt", "conversational prompt", "messages"],
    )
    def test_only_the_question_is_replaced(self, row, expected):
        row = row | {"paraphrased_question": "In what place?", "perturbed_answer": ["Nowhere."], "text": None}
        before = copy.deepcopy(row)
        assert paraphrased([row], "forget") == [row | expected]
        assert row == before

    def test_rows_without_a_paraphrase_are_left_out(self):
        rows = [row | {"paraphrased_question": None} for row in ROWS]
        rows[1]["paraphrased_question"] = "Which texts are by Bo?"
        assert paraphrased(rows, "forget") == [rows[1] | {"question": "Which texts are by Bo?"}]

    def test_the_paraphrase_is_what_the_model_is_asked(self, model, tokenizer):
        row = {"question": "Where does Ada live?", "answer": "By the sea.", "paraphrased_question": "Ada's home?"}
        asked = evaluate_rows(model, tokenizer, paraphrased([row], "forget"), "forget", generate=False)
        by_hand = {"question": "Ada's home?", "answer": "By the sea."}
        assert asked == evaluate_rows(model, tokenizer, [by_hand], "forget", generate=False)
        assert asked != evaluate_rows(model, tokenizer, [row], "forget", generate=False)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (ROWS[0], "No row of the set 'forget' has a `paraphrased_question`"),
            ({"text": "All.", "paraphrased_question": "What?"}, "set 'forget' .* no question that it can replace"),
            ({"messages": [ASSISTANT], "paraphrased_question": "What?"}, "no message before its answer"),
        ],
        ids=["no paraphrase", "text", "answer alone"],
    )
    def test_rows_that_cannot_be_asked_otherwise_are_refused(self, row, message):
        with pytest.raises(ValueError, match=message):
            paraphrased([row], "forget")


@pytest.mark.parametrize(("bits", "largest_error"), [(8, 0.5 / 127 + 2**-11), (4, 0.16)])
def test_bitsandbytes_rounds_within_its_own_levels(bits, largest_error):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is optional")
    weight = torch.rand(8, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    weight[:, 0] = 1.0  # the largest of every row and block
    rounded = round_with_bitsandbytes(weight, bits)
    # Half the widest gap between neighbouring levels: 1 / 127 in 8 bits (after rounding to fp16), 0.3 (from -1.0 to -0.7) in NF4
    assert rounded.shape == weight.shape and rounded.dtype == weight.dtype
    assert 0 < (rounded - weight).abs().max() <= largest_error
    assert len(rounded[0].unique()) <= 2**bits


def test_without_a_gpu_weights_are_rounded_to_nearest(tiny_model):
    assert not has_bitsandbytes(tiny_model().to("cpu"))
