"""A folder that is used again holds one run: what an earlier one left there is removed, or set aside."""

import json
import shutil

import pytest
from peft import LoraConfig

from wagle_trl.cli.main import main
from wagle_trl.files.manifest import Manifest
from wagle_trl.files.run_folder import CARD_FILE, DELTA_FILE, EVALUATION_FILE, MASK_FILE, PLOT_FILE, RECORDS_FILE

LORA = {"peft_config": LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False)}
ADAPTERS = {"adapter_config.json", "adapter_model.safetensors"}
WHOLE = {"config.json", "generation_config.json", "model.safetensors"}


@pytest.fixture
def saved(make_trainer, tiny_model, small_mask, tmp_path):
    """`saved(seed, masked=False, **options)`: a trainer whose model, of this seed, is saved in `out`, with its files."""

    def save(seed, masked=False, **options):
        trainer = make_trainer(
            model=tiny_model(seed=seed), **options, **({"mask_config": small_mask} if masked else {})
        )
        if masked:
            trainer.prepare_training(None)
        trainer.save_model()
        trainer.create_model_card()
        return trainer

    return save


def names_in(folder):
    return {path.name for path in folder.iterdir()}


REUSED = {
    "masked, then dense": ({"masked": True, "save_delta": True}, {}, {MASK_FILE, DELTA_FILE, PLOT_FILE}),
    "a delta, then none": ({"masked": True, "save_delta": True}, {"masked": True}, {DELTA_FILE}),
    "dense, then masked": ({}, {"masked": True}, set()),
    "adapters, then all": (LORA, {}, ADAPTERS),
    "all, then adapters": ({}, LORA, WHOLE),
    "masked, then adapters": ({"masked": True}, LORA, WHOLE | {MASK_FILE, PLOT_FILE}),
}


@pytest.mark.parametrize("is_listed", [True, False], ids=["of a save", "of unknown origin"])
@pytest.mark.parametrize(("first", "second", "gone"), REUSED.values(), ids=REUSED)
def test_what_another_run_left_is_no_part_of_the_new_one(first, second, gone, is_listed, saved, tmp_path, caplog):
    out = tmp_path / "out"
    saved(1, **first)
    assert gone <= names_in(out)
    if not is_listed:
        (out / "wagle_manifest.json").unlink()
    saved(2, **second)
    assert not gone & names_in(out)
    assert is_listed or not gone or gone <= names_in(out / "set_aside-1")
    manifest = Manifest.read(out)
    assert not manifest.changed(out) and not gone & manifest.files.keys()
    if gone:
        said = [line for line in caplog.messages if line.startswith(str(out))]
        assert len(said) == 1 and all(name in said[0] for name in gone - {PLOT_FILE})
    card = (out / CARD_FILE).read_text()
    assert ("- Mask: none" in card) == ("masked" not in second)


def test_shards_of_a_larger_model_go(saved, tmp_path, tiny_model):
    out = tmp_path / "out"
    tiny_model(seed=1).save_pretrained(out, max_shard_size="40KB")
    shards = {name for name in names_in(out) if name.startswith("model")}
    saved(2)
    assert not shards & names_in(out) and shards <= names_in(out / "set_aside-1")


def test_an_evaluation_and_its_records_move_with_the_weights_that_they_are_of(saved, tmp_path):
    out = tmp_path / "out"
    trainer = saved(1, masked=True)
    evaluation = {"fingerprint": trainer.saved_fingerprint(), "forget_prob": 0.5}
    (out / EVALUATION_FILE).write_text(json.dumps(evaluation))
    (out / RECORDS_FILE).write_text("")
    (out / "attacks" / "relearn").mkdir(parents=True)
    (out / "attacks" / "relearn" / RECORDS_FILE).write_text("")
    saved(1, masked=True)
    assert "| 0.500 |" in (out / CARD_FILE).read_text()  # the same weights
    saved(2)
    assert {EVALUATION_FILE, RECORDS_FILE}.isdisjoint(names_in(out))
    moved = {path.relative_to(out / "set_aside-1").as_posix() for path in (out / "set_aside-1").rglob("*.json*")}
    assert moved == {EVALUATION_FILE, RECORDS_FILE, f"attacks/relearn/{RECORDS_FILE}"}
    assert "0.500" not in (out / CARD_FILE).read_text()


def test_what_is_the_users_own_stays(saved, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    own = {"notes.txt", "rows.jsonl", "consolidated.safetensors"}
    for name in own:
        (out / name).write_text("mine")
    saved(1)
    saved(2)
    assert own <= names_in(out) and "set_aside-1" not in names_in(out)


def test_a_card_is_not_made_for_weights_that_are_not_there(saved, make_trainer, tiny_model):
    saved(1)
    with pytest.raises(ValueError, match="holds other weights than these; save them there first, with `save_model`"):
        make_trainer(model=tiny_model(seed=2)).create_model_card()


def test_a_card_that_was_edited_survives_saves_and_checkpoints(make_trainer, tmp_path, caplog):
    path = tmp_path / "out" / CARD_FILE
    path.parent.mkdir()
    path.write_text("# By hand\n")
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    assert path.read_text() == "# By hand\n"
    assert "\n# out\n" in (path.parent / "README.generated.md").read_text()
    assert "\n# out\n" in (path.parent / "checkpoint-1" / CARD_FILE).read_text()
    path.unlink()
    trainer.save_model()
    assert "\n# out\n" in path.read_text() and not (path.parent / "README.generated.md").exists()


def test_adapters_beside_a_model_are_not_evaluated_in_its_place(saved, tiny_tokenizer, tmp_path, capsys):
    out = tmp_path / "out"
    saved(1, **LORA, output_dir=str(tmp_path / "lora"))
    saved(2)
    argv = ["eval", "--model_name_or_path", str(out), "--output_dir", str(tmp_path / "e")]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": " b"}))
    argv += ["--forget_dataset", str(tmp_path / "rows.jsonl"), "--generate", "false"]
    for name in ADAPTERS:
        shutil.copy(tmp_path / "lora" / name, out / name)
    assert main(argv) == 2
    assert "adapter_config.json' is not in the manifest" in capsys.readouterr().err
    (out / "wagle_manifest.json").unlink()
    assert main(argv) == 2
    assert "it holds a model and adapters (adapter_config.json)" in capsys.readouterr().err
    for name in ADAPTERS:
        (out / name).unlink()
    assert main(argv) == 0


def test_what_is_measured_of_other_weights_is_not_put_into_the_folder_of_a_run(
    saved, tiny_tokenizer, tiny_model, tmp_path, capsys
):
    saved(1)
    for piece in (tiny_model(seed=2), tiny_tokenizer):
        piece.save_pretrained(tmp_path / "other")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": " b"}))
    argv = ["eval", "--output_dir", str(tmp_path / "out"), "--forget_dataset", str(tmp_path / "rows.jsonl")]
    argv += ["--generate", "false", "--model_name_or_path"]
    assert main([*argv, str(tmp_path / "other")]) == 2
    assert "out' holds a run with other weights than" in capsys.readouterr().err
    assert EVALUATION_FILE not in names_in(tmp_path / "out")
    assert main([*argv, str(tmp_path / "out"), "--dtype", "float16"]) == 0
    assert "Answer probability: forget" in (tmp_path / "out" / CARD_FILE).read_text()
    assert not Manifest.read(tmp_path / "out").changed(tmp_path / "out")


def test_a_mask_is_not_put_beside_a_model_that_was_trained_without_it(saved, tmp_path, capsys):
    saved(1)
    argv = ["mask", "--model_name_or_path", "any", "--output_dir", str(tmp_path / "out"), "--report_to", "none"]
    assert main(argv) == 2
    assert "out' holds a trained model; choose another --output_dir" in capsys.readouterr().err
