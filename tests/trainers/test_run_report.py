import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from wagle_trl import MaskConfig
from wagle_trl.data.provenance import describe_rows, rows_digest, secret_key
from wagle_trl.files.run_folder import KEY_FILE, REPORT_FILE
from wagle_trl.masks.fingerprint import adapter_fingerprint, model_fingerprint
from wagle_trl.trainers.run_report import run_report, write_run_report


def test_the_report_tells_what_was_done(make_trainer, tmp_path):
    trainer = make_trainer(mask_config=MaskConfig(mask_density=0.1), beta=0.2)
    trainer.train()
    trainer.save_model()
    report = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert report["objective"] == "NPO"
    assert (report["num_train_rows"], report["num_retain_rows"]) == (6, 10)
    assert report["options"]["beta"] == 0.2
    assert report["options"]["max_steps"] == 3
    assert report["mask"]["num_selected"] == trainer.mask.num_selected
    assert report["mask"]["info"]["score"] == "wagle"
    assert report["log_history"][0]["forget_loss"] == pytest.approx(13.8629 / 2, abs=1e-3)
    assert all(report["cost"]["peak_memory_bytes"][phase] > 2**20 for phase in ("attribution", "training"))
    assert {"wagle-trl", "torch", "transformers", "trl"} <= set(report["versions"])


def test_the_report_has_the_options_that_choose_the_optimizer_and_the_step_of_the_weights(make_trainer):
    chosen = {"optim": "sgd", "adam_beta2": 0.9, "trajectory_steps": 2, "trajectory_rows": 3, "data_seed": 7}
    chosen |= {"load_best_model_at_end": True, "metric_for_best_model": "kept"}
    trainer = make_trainer(**chosen, eval_strategy="steps", save_strategy="steps", stop_forget_probability=0.1)
    assert chosen.items() <= run_report(trainer)["options"].items()


@pytest.mark.parametrize("kind, objective", [("grad_diff", "GradDiff"), ("masked_sft", "Masked SFT")])
def test_a_report_can_be_written_before_training_and_without_a_mask(kind, objective, make_trainer, tmp_path):
    trainer = make_trainer(kind, retain_dataset=None) if kind == "masked_sft" else make_trainer(kind)
    path = write_run_report(trainer, tmp_path / "new" / "folder")
    report = json.loads(path.read_text())
    assert report["objective"] == objective
    assert report["mask"] is None
    assert report["num_retain_rows"] == (None if kind == "masked_sft" else 10)


@pytest.mark.parametrize("resumed", [True, False], ids=["resumed", "ready mask"])
def test_a_mask_that_was_loaded_is_reported_too(resumed, make_trainer, small_mask, tmp_path):
    first = make_trainer(mask_config=small_mask, save_strategy="steps", save_steps=2)
    first.train()
    if resumed:
        second = make_trainer(mask_config=small_mask)
        second.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    else:
        second = make_trainer(mask=first.mask)
    mask = run_report(second)["mask"]
    assert mask["num_selected"] == first.mask.num_selected
    assert mask["density"] == first.mask.density
    assert mask["info"]["score"] == "random"


@pytest.mark.parametrize("kind", ["npo", "masked_sft"])
def test_the_report_describes_the_rows_as_they_were_given(kind, make_trainer, forget_rows, retain_rows):
    others = {"forget_dataset": retain_rows.select([0])} if kind == "masked_sft" else {}
    trainer = make_trainer(kind, **others)
    data = run_report(trainer)["data"]
    expected = {"train" if kind == "masked_sft" else "forget": forget_rows, "retain": retain_rows}
    expected |= {"forget": others["forget_dataset"]} if others else {}
    assert data == {name: describe_rows(rows, trainer.args.output_dir) for name, rows in expected.items()}


def test_the_report_tells_a_base_model_in_a_folder_from_one_on_the_hub(
    make_trainer, tiny_model, tmp_path, monkeypatch
):
    tiny_model().save_pretrained(tmp_path / "base")
    trainer = make_trainer(model=str(tmp_path / "base"))
    report = run_report(trainer)
    assert (report["base_model"], report["base_is_local"]) == (str(tmp_path / "base"), True)
    assert report["base_revision"] is None
    monkeypatch.setattr("wagle_trl.trainers.run_inputs.model_commit", lambda name, revision: f"{revision} of {name}")
    trainer = make_trainer(model=str(tmp_path / "base"), model_init_kwargs={"revision": "v1"})
    assert run_report(trainer)["base_revision"] == f"v1 of {tmp_path / 'base'}"


def test_the_report_names_the_kind_of_adapters_and_their_options(make_trainer):
    assert run_report(make_trainer())["peft_type"] is None
    report = run_report(make_trainer(peft_config=LoraConfig(r=2, target_modules=["v_proj", "q_proj"])))
    assert report["peft_type"] == "LORA"
    found = {name: value for name, value in report["options"].items() if name.startswith("peft_")}
    assert found == {"peft_r": 2, "peft_target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_report_has_the_fingerprint_of_the_weights_saved_beside_it(dtype, make_trainer, tiny_model, tmp_path):
    trainer = make_trainer(model=tiny_model(dtype=dtype), learning_rate=1e-2)
    before = run_report(trainer)["fingerprint"]
    trainer.train()
    trainer.save_model()
    fingerprint = json.loads((tmp_path / "out" / REPORT_FILE).read_text())["fingerprint"]
    for loaded in (torch.float32, torch.bfloat16):
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=loaded)
        assert model_fingerprint(saved) == fingerprint != before


def test_the_fingerprint_of_adapters_is_that_of_their_file(make_trainer, tiny_model, tmp_path):
    trainer = make_trainer(peft_config=LoraConfig(r=2, init_lora_weights=False))
    trainer.save_model()
    saved = PeftModel.from_pretrained(tiny_model(), tmp_path / "out")
    assert run_report(trainer)["fingerprint"] == adapter_fingerprint(saved) != model_fingerprint(saved)


def test_no_fingerprint_where_no_whole_model_is_saved(make_trainer, small_mask):
    trainer = make_trainer(mask_config=small_mask)
    trainer.compute_mask()
    assert "fingerprint" not in run_report(trainer, "mask")
    trainer.is_fsdp_enabled = True
    assert "fingerprint" not in run_report(trainer)


def test_the_report_counts_the_steps_that_no_log_tells_of(make_trainer, tmp_path):
    make_trainer(save_strategy="steps", save_steps=2, logging_steps=50).train()
    report = json.loads((tmp_path / "out" / "checkpoint-2" / REPORT_FILE).read_text())
    assert (report["steps"], report["log_history"]) == (2, [])


@pytest.mark.parametrize("hashed", [True, False])
def test_hashed_rows_are_named_by_their_digests_only(hashed, make_trainer, forget_rows):
    forget_rows.info.dataset_name, forget_rows.info.builder_name = "secret-rows", "json"
    trainer = make_trainer(train_dataset=forget_rows, hash_forget_set=hashed)
    rows = run_report(trainer)["data"]["forget"]
    assert ("secret-rows" in rows.values()) != hashed
    keyed = rows_digest(forget_rows, secret_key(trainer.args.output_dir))
    assert (rows["rows"], rows["hmac_sha256"]) == (6, keyed)
    assert not hashed or rows.keys() == {"rows", "hmac_sha256"}


def test_checkpoints_and_later_runs_in_a_folder_use_its_key(make_trainer, tmp_path):
    data = []
    for _ in range(2):
        make_trainer(save_strategy="steps", save_steps=2).train()
        data.append(json.loads((tmp_path / "out" / "checkpoint-2" / REPORT_FILE).read_text())["data"])
    assert data[0] == data[1]
    assert [path.parent.name for path in tmp_path.rglob(KEY_FILE)] == ["out"]


def test_equal_runs_have_equal_reports_but_for_what_they_cost(make_trainer, small_mask, forget_rows, tmp_path):
    reports, keys = [], []
    for name in ("a", "b"):
        folder = tmp_path / name
        keys.append(secret_key(folder))
        if keys[1:]:
            (folder / KEY_FILE).write_text(keys[0].hex())
        options = {"save_delta": True, "eval_strategy": "steps", "eval_steps": 1, "eval_dataset": forget_rows}
        trainer = make_trainer(mask_config=small_mask, output_dir=str(folder), trajectory_steps=1, **options)
        trainer.train()
        trainer.save_model()
        trainer.create_model_card()
        reports.append(json.loads((folder / REPORT_FILE).read_text()))
    costs = [report.pop("cost") for report in reports]
    assert reports[0] == reports[1]
    assert keys[0] != keys[1]
    assert {"train_runtime", "eval_samples_per_second"} <= {name for entry in costs[0]["times"] for name in entry}
    assert not [name for entry in reports[0]["log_history"] for name in entry if "runtime" in name or "second" in name]
    assert reports[0]["log_history"][-1]["step"] == 3
