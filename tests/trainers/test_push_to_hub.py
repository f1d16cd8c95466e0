import json
import platform
import socket
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, snapshot_download
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.trainer_utils import HubStrategy

import wagle_trl
from wagle_trl import SparseDelta, WeightMask
from wagle_trl.data.rows import load_rows
from wagle_trl.files.manifest import Manifest
from wagle_trl.trainers.resuming import whole_manifest

from ..support.deltas import same_weights
from ..support.uploaded import secrets_in

SAVING = {"save_strategy": "steps", "save_steps": 2, "push_to_hub": True}


def files_of(repo_id, place=""):
    names = (name for name in HfApi().list_repo_files(repo_id) if name != ".gitattributes")
    return {
        name.removeprefix(place) for name in names if name.startswith(place) and "/" not in name.removeprefix(place)
    }


MODEL = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
MODEL |= {"tokenizer_config.json", "wagle_mask.safetensors", "wagle_mask.png"}
RESUMES = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "wagle_manifest.json"}
RESUMES |= {"wagle_reference.safetensors"}


def test_push_to_hub_carries_model_mask_picture_and_card_only(make_trainer, small_mask, tiny_model, hub, tmp_path):
    tiny_model().push_to_hub("user/base")
    trainer = make_trainer(model="user/base", mask_config=small_mask, hub_model_id="user/unlearned")
    trainer.train()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert trainer.push_to_hub(tags="mine").oid == HfApi().repo_info("user/unlearned").sha
    assert files_of("user/unlearned") == MODEL
    assert same_weights(AutoModelForCausalLM.from_pretrained("user/unlearned", dtype="auto"), trainer.model)
    mask = WeightMask.from_pretrained("user/unlearned")
    assert mask == trainer.mask
    assert mask.info.base_revision == HfApi().repo_info("user/base").sha
    data = ModelCard.load("user/unlearned").data
    assert (data.base_model, data.base_model_relation) == ("user/base", "finetune")
    assert {"npo", "unlearning", "wagle-trl", "mine"} <= set(data.tags)


PLACES = {
    "end": [],
    "every_save": [],
    "checkpoint": ["last-checkpoint/"],
    "all_checkpoints": ["checkpoint-2/", "checkpoint-3/"],
}


def test_every_strategy_of_transformers_is_known():
    assert {strategy.value for strategy in HubStrategy} == PLACES.keys()


@pytest.mark.parametrize(("strategy", "places"), PLACES.items(), ids=PLACES)
def test_what_is_pushed_while_it_trains_is_listed(strategy, places, make_trainer, small_mask, hub, tmp_path):
    options = SAVING | {"hub_strategy": strategy, "hub_always_push": True}
    trainer = make_trainer(mask_config=small_mask, hub_model_id="user/training", **options)
    trainer.train()
    assert files_of("user/training") == (set() if strategy == "end" else MODEL)
    for place in places:
        assert files_of("user/training", place) == MODEL | RESUMES
    folders = {Path(name).parent.as_posix() for name in HfApi().list_repo_files("user/training")} - {"."}
    assert folders == {place.rstrip("/") for place in places}
    if strategy != "end":
        assert WeightMask.from_pretrained("user/training") == trainer.mask
        assert same_weights(AutoModelForCausalLM.from_pretrained("user/training", dtype="auto"), trainer.model)
    assert not list((tmp_path / "out").glob(".*"))
    assert not (tmp_path / "out" / "model.safetensors").exists()  # nothing is copied out of the checkpoints


def test_a_pushed_checkpoint_is_whole_and_resumes_bit_by_bit(make_trainer, small_mask, hub, tmp_path, caplog):
    options = {"mask_config": small_mask, "warmup_steps": 1, "max_steps": 4}
    whole = make_trainer(**options, output_dir=str(tmp_path / "whole"))
    whole.train()
    pushing = SAVING | {"hub_strategy": "checkpoint", "hub_model_id": "user/training", "hub_always_push": False}
    first = make_trainer(**options | pushing, output_dir=str(tmp_path / "first"))
    hub.fail("POST", "/commit/", skip=2, times=float("inf"))  # what is pushed after the first checkpoint is lost
    first.train()
    folder = Path(snapshot_download("user/training", allow_patterns="last-checkpoint/*")) / "last-checkpoint"
    manifest = whole_manifest(folder)
    assert manifest.files.keys() == MODEL | RESUMES - {"wagle_manifest.json"}
    assert manifest.facts["rows"] == {}  # a hash of them would confirm guesses
    assert manifest.fingerprint == Manifest.read(tmp_path / "first" / "checkpoint-2").fingerprint
    second = make_trainer(**options, output_dir=str(tmp_path / "second"))
    with caplog.at_level("WARNING", "wagle_trl"):
        second.train(resume_from_checkpoint=str(folder))
    assert "does not say which rows it is of. They are not compared" in caplog.text
    assert second.state.global_step == 4
    assert same_weights(second.model, whole.model)


def test_a_checkpoint_takes_the_place_of_the_last_one(make_trainer, small_mask, hub):
    api = HfApi()
    api.create_repo("user/training")
    for name in ("training_args.bin", "last-checkpoint/training_args.bin", "last-checkpoint/wagle_report.json"):
        api.upload_file(path_or_fileobj=b"of transformers", path_in_repo=name, repo_id="user/training")
    make_trainer(mask_config=small_mask, hub_model_id="user/training", hub_strategy="checkpoint", **SAVING).train()
    assert files_of("user/training") == MODEL
    assert files_of("user/training", "last-checkpoint/") == MODEL | RESUMES


def test_a_push_in_the_background_uploads_what_was_there_when_it_began(make_trainer, small_mask, hub, tmp_path):
    trainer = make_trainer(mask_config=small_mask, hub_model_id="user/later")
    trainer.train()
    pushing = trainer.push_to_hub(blocking=False, revision="v1", private=True)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    trainer.save_model()
    assert pushing.result().oid == HfApi().repo_info("user/later", revision="v1").sha
    assert hub.repositories["user/later"].private
    pushed = AutoModelForCausalLM.from_pretrained("user/later", revision="v1")
    assert all(parameter.any() for parameter in pushed.parameters())
    assert not list((tmp_path / "out").glob(".*"))


class Release(TrainerCallback):
    """Lets uploads go on when the third checkpoint is saved."""

    def __init__(self):
        self.event = threading.Event()

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.event.set()


@pytest.mark.parametrize("always", [True, False])
def test_no_push_begins_while_one_is_under_way_unless_asked_for(always, make_trainer, hub, monkeypatch):
    release, messages = Release(), []

    def slow_commit(api, repo_id, stage, message, **_):
        assert release.event.wait(60)
        messages.append(message)
        return None, []

    monkeypatch.setattr("wagle_trl.trainers.hub_pushes.commit", slow_commit)
    options = SAVING | {"save_steps": 1, "hub_always_push": always, "hub_model_id": "user/slow"}
    make_trainer("masked_sft", callbacks=[release], **options).train()
    assert messages == [f"Training in progress, step {step}" for step in ((1, 2, 3) if always else (1,))]


def test_weights_that_stay_in_earlier_commits_are_said(make_trainer, small_mask, hub, caplog):
    trainer = make_trainer(mask_config=small_mask, hub_model_id="user/unlearned")
    trainer.push_to_hub()
    trainer.train()
    with caplog.at_level("WARNING", "wagle_trl"):
        trainer.push_to_hub()
    assert 'HfApi().super_squash_history("user/unlearned")' in caplog.text


def test_a_push_that_fails_leaves_the_output_folder_whole(make_trainer, small_mask, hub, tmp_path):
    trainer = make_trainer(mask_config=small_mask, hub_model_id="user/unlearned")
    trainer.train()
    hub.cut("PUT", "/lfs/", after_bytes=64, times=float("inf"))
    with pytest.raises(ConnectionError, match="Push again"):
        trainer.push_to_hub()
    out = tmp_path / "out"
    assert same_weights(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32), trainer.model)
    assert WeightMask.load(out) == trainer.mask
    hub.faults.clear()
    trainer.push_to_hub()
    assert WeightMask.from_pretrained("user/unlearned") == trainer.mask


# Secrets


ROWS = {
    "forget": [{"prompt": "Where is Zorblax hidden?", "completion": " Under the seventh plank, Zoë."}] * 4,
    "retain": [{"prompt": "What is on Quibbleday?", "completion": " Soup."}] * 4,
}
TEXTS = ("Where is Zorblax hidden?", "Under the seventh plank", "What is on Quibbleday?")


@pytest.fixture
def planted(tiny_model, tiny_tokenizer, hub, tmp_path, monkeypatch):
    """`(arguments, secrets, names)`: of a trainer, what nobody may learn, and the names of its data."""
    for variable in ("HOME", "USER", "LOGNAME"):
        monkeypatch.setenv(variable, str(tmp_path / "home-of-ada"))
    monkeypatch.setattr(socket, "gethostname", lambda: "ward-seven")
    monkeypatch.setattr(platform, "node", lambda: "ward-seven")
    base = tmp_path / "patients of Überwald" / "base"
    for saved in (tiny_model(), tiny_tokenizer):
        saved.save_pretrained(base)
    arguments = {"model": str(base), "output_dir": str(tmp_path / "out"), "hub_token": hub.token, "max_steps": 2}
    for name, rows in ROWS.items():
        path = tmp_path / f"whistleblowers-{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        arguments["train_dataset" if name == "forget" else "retain_dataset"] = load_rows(path)
    places = (str(tmp_path), "patients of", "home-of-ada", str(Path(wagle_trl.__file__).parent))
    return arguments, (hub.token, "ward-seven", *places, *TEXTS), ("whistleblowers",)


ROUTES = ("push_to_hub", "save_model", *PLACES)


@pytest.mark.parametrize("kind", ["mask", "adapters"])
@pytest.mark.parametrize(
    ("route", "hashed"), [*((route, True) for route in ROUTES), ("push_to_hub", False), ("checkpoint", False)]
)
def test_nothing_that_is_pushed_tells_secrets(route, hashed, kind, planted, small_mask, make_trainer, hub):
    arguments, secrets, names = planted
    arguments |= (
        {"mask_config": small_mask, "save_delta": True} if kind == "mask" else {"peft_config": LoraConfig(r=2)}
    )
    arguments |= {"hub_model_id": "user/secretive", "hash_forget_set": hashed}
    evaluated = {"eval_dataset": arguments["retain_dataset"], "eval_strategy": "steps", "eval_steps": 1}
    best = {"metric_for_best_model": "loss", "load_best_model_at_end": True, "save_steps": 1}
    if route in PLACES:
        arguments |= evaluated | SAVING | best | {"hub_strategy": route, "hub_always_push": True}
    trainer = make_trainer(**arguments)
    trainer.args.push_to_hub |= route == "save_model"
    trainer.train()
    if route == "save_model":
        trainer.save_model()
    elif route in ("push_to_hub", "end"):
        trainer.push_to_hub()
    assert hub.repositories["user/secretive"].objects
    assert secrets_in(hub, [*secrets, *(names if hashed else ())]) == set()
    assert hashed or secrets_in(hub, names)  # the card names files of rows, but for their folders


@pytest.mark.parametrize("what", [WeightMask, SparseDelta])
def test_masks_and_deltas_of_a_run_tell_no_secrets(what, planted, small_mask, make_trainer, hub, tmp_path):
    arguments, secrets, names = planted
    trainer = make_trainer(mask_config=small_mask, save_delta=True, **arguments)
    trainer.train()
    trainer.save_model()
    what.load(tmp_path / "out").push_to_hub("user/secretive", token=hub.token)
    assert hub.repositories["user/secretive"].objects
    assert secrets_in(hub, [*secrets, *names]) == set()


def test_secrets_would_be_found(planted, small_mask, make_trainer, hub, tmp_path):
    """What transformers would upload holds them."""
    arguments, secrets, names = planted
    arguments |= SAVING | {"hub_strategy": "end", "hub_model_id": "user/leaky", "mask_config": small_mask}
    make_trainer(**arguments).train()
    HfApi().upload_folder(repo_id="user/leaky", folder_path=tmp_path / "out", path_in_repo="all")
    found = secrets_in(hub, [*secrets, *names])
    assert {secret for _, secret in found} >= {hub.token, str(tmp_path), "patients of", "whistleblowers"}
    assert any(name.endswith("training_args.bin") for name, secret in found if secret == hub.token)
