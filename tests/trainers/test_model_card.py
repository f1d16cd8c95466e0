import json

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig

from wagle_trl.files.run_folder import MASK_FILE, PLOT_FILE
from wagle_trl.masks.mask import WeightMask


def test_the_card_of_the_output_folder_is_ours(make_trainer, small_mask, tmp_path):
    trainer = make_trainer(mask_config=small_mask, trajectory_steps=3)
    trainer.train()
    trainer.save_model(_internal_call=True)  # these two, then an upload, are what `push_to_hub` does
    trainer.create_model_card(model_name="my-model", dataset_name="user/rows", tags=["mine", "npo"])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.text.startswith("\n# my-model\n")
    assert card.data.tags == ["generated_from_trainer", "trl", "wagle-trl", "unlearning", "npo", "mine"]
    assert card.data.datasets == ["user/rows"]
    for fact in (
        "- Rows to forget: 6 rows, HMAC-SHA-256",
        "only those who have the rows and the key can compare it. The number of rows is public",
        f"{trainer.mask.num_selected:,} of the",
        f"]({PLOT_FILE})",
        "step 3",
    ):
        assert fact in card.text
    assert "None" not in card.content
    assert (tmp_path / "out" / PLOT_FILE).stat().st_size > 1000


def test_a_checkpoint_holds_mask_report_and_card_and_no_picture(make_trainer, small_mask, tmp_path):
    trainer = make_trainer(mask_config=small_mask, save_strategy="steps", save_steps=2)
    trainer.train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert WeightMask.load(checkpoint) == trainer.mask
    assert json.loads((checkpoint / "wagle_report.json").read_text())["log_history"][-1]["step"] == 2
    assert "\n# out\n" in (checkpoint / "README.md").read_text()
    assert not (checkpoint / PLOT_FILE).exists()
    for name in ("README.md", "wagle_report.json", MASK_FILE, PLOT_FILE):
        assert (tmp_path / "out" / name).exists(), name


def test_the_picture_of_another_run_is_drawn_anew(make_trainer, small_mask, tmp_path):
    trainer = make_trainer(mask_config=small_mask)
    trainer.compute_mask()
    picture = tmp_path / "out" / PLOT_FILE
    picture.write_bytes(b"of another run")
    trainer.create_model_card()
    drawn = picture.read_bytes()
    assert drawn.startswith(b"\x89PNG")
    picture.write_bytes(b"ours, drawn once")
    trainer.create_model_card()
    assert picture.read_bytes() == b"ours, drawn once"


def test_a_run_without_a_mask_has_a_card_without_a_picture(make_trainer, tmp_path):
    make_trainer().create_model_card(tags="mine")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "- Mask: none, all trainable weights were trained" in card.text
    assert card.data.tags[-1] == "mine"
    assert not (tmp_path / "out" / PLOT_FILE).exists()


@pytest.mark.parametrize("saved", [True, False], ids=["save_model", "create_model_card"])
def test_hashed_rows_are_named_in_no_file(saved, make_trainer, forget_rows, tmp_path):
    forget_rows.info.dataset_name, forget_rows.info.builder_name = "secret-rows", "json"
    trainer = make_trainer(train_dataset=forget_rows, hash_forget_set=True)
    trainer.save_model() if saved else trainer.create_model_card(dataset_name="user/secret-rows")
    files = [path for path in (tmp_path / "out").iterdir() if path.is_file()]
    assert {"README.md", "wagle_report.json"} <= {path.name for path in files}
    assert not [path.name for path in files if b"secret-rows" in path.read_bytes()]
    assert "- Rows to forget: 6 rows, HMAC-SHA-256 `" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("saved", [True, False], ids=["save_model", "create_model_card"])
def test_adapters_have_our_card_in_place_of_that_of_peft(saved, make_trainer, tmp_path):
    trainer = make_trainer(peft_config=LoraConfig(r=2))
    trainer.save_model() if saved else trainer.create_model_card()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "peft"
    assert card.text.startswith("\n# out\n\nAdapters for")


def test_only_the_main_process_writes(make_trainer, monkeypatch, tmp_path):
    trainer = make_trainer()
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    trainer.create_model_card()
    assert list((tmp_path / "out").iterdir()) == []
