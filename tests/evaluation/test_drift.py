import copy
import math

import pytest
import torch
from torch import nn

from wagle_trl.evaluation.drift import check_same_weights, kl_to_base, weights_changed

from .conftest import make_model


class Two(nn.Module):
    """Six weights outside the layers and four in each of two."""

    def __init__(self):
        super().__init__()
        self.head = nn.Parameter(torch.zeros(6))
        self.layers = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(2))


def start_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


class TestWeightsChanged:
    def test_shares_are_those_counted_by_hand(self):
        model = Two()
        start = start_of(model)
        model.layers[1].weight.data[0] += 1
        model.head.data[5] = 2
        assert weights_changed(model, start) == (3 / 14, {"-": 1 / 6, "0": 0.0, "1": 0.5})

    def test_nothing_changed_in_a_copy(self):
        model = Two()
        assert weights_changed(model, start_of(model)) == (0.0, {"-": 0.0, "0": 0.0, "1": 0.0})

    def test_weights_are_compared_bit_by_bit(self):
        model = Two()
        model.head.data[0] = math.nan
        start = start_of(model)
        assert weights_changed(model, start).share == 0.0
        model.head.data[1] = -0.0
        assert weights_changed(model, start).by_layer["-"] == 1 / 6

    def test_a_start_in_fp32_is_rounded_as_the_model_was(self):
        model = Two()
        start = start_of(model)
        assert weights_changed(model.bfloat16(), start).share == 0.0


class Constant(nn.Module):
    """A language model that says the same at every token."""

    def __init__(self, probs):
        super().__init__()
        self.log_probs = nn.Parameter(torch.tensor(probs).log())
        self.device = torch.device("cpu")

    def forward(self, input_ids, **_):
        self.logits = self.log_probs.expand(*input_ids.shape, -1)
        return self


class TestDivergence:
    def test_it_is_the_hand_computed_one_from_the_base_to_the_model(self):
        base, model = Constant([0.5, 0.25, 0.25]), Constant([0.25, 0.25, 0.5])
        row = {"input_ids": [0, 1, 2], "labels": [-100, 1, 2]}
        # 1/2 log (1/2 / 1/4) + 1/4 log 1 + 1/4 log (1/4 / 1/2)
        assert kl_to_base(model, base, [row], 0) == pytest.approx([0.25 * math.log(2)])

    def test_the_base_is_the_first_argument_of_the_divergence(self):
        base, model = Constant([0.5, 0.5]), Constant([0.75, 0.25])
        row = {"input_ids": [0, 1], "labels": [-100, 1]}
        # 1/2 log (1/2 / 3/4) + 1/2 log (1/2 / 1/4), not 3/4 log (3/4 / 1/2) + 1/4 log (1/4 / 1/2)
        assert kl_to_base(model, base, [row], 0) == pytest.approx([0.5 * math.log(4 / 3)])

    @pytest.mark.parametrize("lowest", [0.0, 1e-45])
    def test_a_token_that_cannot_occur_changes_nothing(self, lowest):
        base, model = Constant([0.5, 0.5, lowest]), Constant([0.75, 0.25, lowest])
        row = {"input_ids": [0, 1], "labels": [-100, 1]}
        assert kl_to_base(model, base, [row], 0) == pytest.approx([0.5 * math.log(4 / 3)])

    def test_a_model_does_not_diverge_from_itself(self, model, tokenized):
        assert kl_to_base(model, copy.deepcopy(model), tokenized, 0) == pytest.approx([0.0] * len(tokenized), abs=1e-6)

    def test_the_batch_size_does_not_matter(self, model, memorized_model, tokenized):
        one_by_one = [kl_to_base(memorized_model, model, [row], 0)[0] for row in tokenized]
        assert min(one_by_one) > 0.1
        assert kl_to_base(memorized_model, model, tokenized, 0) == pytest.approx(one_by_one, rel=1e-5, abs=1e-5)

    def test_the_modes_are_restored(self, model, tokenized):
        base = copy.deepcopy(model).train()
        kl_to_base(model, base, tokenized, 0)
        assert (model.training, base.training) == (False, True)


def test_models_of_other_shapes_cannot_be_compared(tokenizer):
    model, wider = make_model(tokenizer), make_model(tokenizer)
    check_same_weights(model, make_model(tokenizer))
    wider.resize_token_embeddings(400)
    with pytest.raises(
        ValueError, match=r"another architecture: 2 parameters differ, such as model.embed_tokens.weight"
    ):
        check_same_weights(model, wider)
