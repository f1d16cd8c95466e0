import pytest
import torch

from wagle_trl.data.formats import to_prompt_completion
from wagle_trl.demo.people import people_rows
from wagle_trl.demo.tiny_model import build_model, build_tokenizer, train

ROWS = people_rows(num_people=30)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer([f"Question: {row['question']}\nAnswer: {row['answer']}" for row in ROWS])


def test_special_tokens(tokenizer):
    assert tokenizer.eos_token == "</s>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.chat_template is None
    assert tokenizer("Answer: In</s>")["input_ids"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("text", [ROWS[0]["answer"], ROWS[1]["question"], " A  naïve, 'unseen' text!\n"])
def test_text_survives(tokenizer, text):
    ids = tokenizer(text + tokenizer.eos_token)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_prompt_tokens_are_a_prefix(tokenizer):
    for row in ROWS:
        example = to_prompt_completion(row, tokenizer)
        prompt = tokenizer(example["prompt"])["input_ids"]
        both = tokenizer(example["prompt"] + example["completion"])["input_ids"]
        assert both[: len(prompt)] == prompt
        assert len(both) <= 32


def test_same_seed_same_model(tokenizer):
    before = torch.get_rng_state()
    first, again, other = (build_model(tokenizer, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert torch.equal(before, torch.get_rng_state())


def answer_loss(model, tokenizer, rows):
    losses = []
    for row in rows:
        example = to_prompt_completion(row, tokenizer)
        ids = tokenizer(example["prompt"] + example["completion"], return_tensors="pt")["input_ids"]
        labels = ids.clone()
        labels[:, : len(tokenizer(example["prompt"])["input_ids"])] = -100
        losses.append(model(input_ids=ids, labels=labels).loss.item())
    return sum(losses) / len(losses)


def test_training_lowers_the_loss(tokenizer, capsys):
    model, rows = build_model(tokenizer), ROWS[:16]
    before = answer_loss(model, tokenizer, rows)
    trainer = train(model, tokenizer, rows, epochs=8, batch_size=4, description="Learning people")
    captured = capsys.readouterr()
    assert trainer.model is model and not model.training
    assert answer_loss(model, tokenizer, rows) < before - 1
    assert captured.out == ""
    assert "Learning people" in captured.err
