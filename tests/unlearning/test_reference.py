"""The reference is of this model, these rows and these answers."""

import pytest

from wagle_trl.unlearning.reference import REFERENCE_COLUMN, load_reference, save_reference


def test_a_column_of_another_trainer_is_no_reference(make_trainer, tiny_model):
    first = make_trainer(max_steps=1)
    first.train()
    second = make_trainer(model=tiny_model(seed=1), train_dataset=first.train_dataset, max_steps=1)
    second.train()
    assert second.state.log_history[0]["forget_loss"] == pytest.approx(
        13.8629, abs=1e-3
    )  # 2 ln 2 / beta: it starts from its own model
    assert second.train_dataset[REFERENCE_COLUMN] != first.train_dataset[REFERENCE_COLUMN]


def test_a_later_call_of_train_keeps_the_reference_of_the_first(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    before = list(trainer.train_dataset[REFERENCE_COLUMN])
    trainer.train()
    assert list(trainer.train_dataset[REFERENCE_COLUMN]) == before


def test_values_of_other_answers_are_refused_though_there_are_as_many(make_trainer, tmp_path):
    rows = make_trainer().train_dataset
    counts = [sum(label != -100 for label in labels[1:]) for labels in rows["labels"]]
    save_reference(tmp_path / "file", {"forget": [[0.0] * count for count in counts]})
    assert list(map(len, load_reference(tmp_path / "file", {"forget": rows})["forget"])) == counts
    counts[0], counts[1] = counts[0] + 1, counts[1] - 1
    save_reference(tmp_path / "file", {"forget": [[0.0] * count for count in counts]})
    with pytest.raises(ValueError, match="is of other forget rows, or of other answers in them"):
        load_reference(tmp_path / "file", {"forget": rows})
