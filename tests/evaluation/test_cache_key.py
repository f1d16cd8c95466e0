import copy

import pytest

from wagle_trl.evaluation.cache_key import evaluation_key
from wagle_trl.evaluation.samples import prepare_rows
from wagle_trl.evaluation.tofu import EvalOptions

from .conftest import ROWS


@pytest.fixture
def key_of(tokenizer):
    samples = {"forget": prepare_rows(ROWS, "forget", tokenizer)}
    return lambda model, base=None, **options: evaluation_key(model, tokenizer, base, EvalOptions(**options), samples)


def test_every_single_weight_counts(model, key_of):
    changed = copy.deepcopy(model)
    changed.model.embed_tokens.weight.data[0, 1] += 1e-6
    assert key_of(changed) != key_of(model)
    assert key_of(model, base=changed) != key_of(model, base=model)


def test_the_same_weights_elsewhere_have_the_same_key(model, key_of):
    assert key_of(copy.deepcopy(model)) == key_of(model)


def test_models_in_half_precision_have_a_key_of_their_own(model, key_of):
    full = key_of(model)
    assert key_of(model.bfloat16()) != full


def test_the_batch_size_is_no_part_of_the_key(model, key_of):
    assert key_of(model, batch_size=2) == key_of(model, batch_size=3)
    assert key_of(model, mia_k=0.2) != key_of(model, mia_k=0.3)
