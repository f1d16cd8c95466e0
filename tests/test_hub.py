"""What a run made, published and loaded again by the real client of the Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trl import SparseDelta, WeightMask, load_unlearned
from wagle_trl.checkpoint import Checkpoint
from wagle_trl.folders import delta_between
from wagle_trl.hub import publish

from .deltas import same_weights, unlearned


@pytest.fixture
def run(tiny_model, tiny_tokenizer, tmp_path, hub):
    """Folder of an unlearned model whose base is `user/base` on the Hub, with files that are nobody's business."""
    base, folder = tiny_model(dtype=torch.bfloat16), tmp_path / "run"
    base.push_to_hub("user/base")
    tiny_tokenizer.push_to_hub("user/base")
    model, mask = unlearned(base)
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    mask.info["base_revision"] = HfApi().repo_info("user/base").sha
    mask.save(folder)
    base.save_pretrained(tmp_path / "base")
    delta_between(Checkpoint(tmp_path / "base"), Checkpoint(folder), mask, undo=True, progress=False).save(folder)
    for name in ("wagle_report.json", "wagle_eval.json", "trainer_state.json"):
        (folder / name).write_text(json.dumps({"forget_dataset": "secret.jsonl"}))
    (folder / "wagle_records.jsonl").write_text("what was forgotten\n")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "optimizer.pt").write_bytes(b"pickle")
    return folder


CARD = ModelCard("---\nlicense: mit\n---\n# Mine\n")


def files_of(repo_id, revision=None):
    return {name for name in HfApi().list_repo_files(repo_id, revision=revision) if name != ".gitattributes"}


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_published_model_is_loaded_by_transformers_alone_bit_by_bit(run, hub):
    before = snapshot(run)
    url = publish(run, "user/model", CARD)
    assert url.startswith(f"{hub.url}/user/model/commit/")
    assert same_weights(
        AutoModelForCausalLM.from_pretrained("user/model", dtype="auto"),
        AutoModelForCausalLM.from_pretrained(run, dtype="auto"),
    )
    assert len(AutoTokenizer.from_pretrained("user/model")) == len(AutoTokenizer.from_pretrained(run))
    assert WeightMask.from_pretrained("user/model") == WeightMask.load(run)
    assert ModelCard.load("user/model").text.strip() == "# Mine"
    assert snapshot(run) == before


def test_what_is_private_and_what_executes_stays_at_home(run):
    publish(run, "user/model", CARD)
    assert files_of("user/model") == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "wagle_mask.png",
        "wagle_mask.safetensors",
    }


def test_a_published_mask_is_that_of_the_run(run):
    publish(run, "user/mask", CARD, what="mask")
    assert files_of("user/mask") == {"README.md", "wagle_mask.png", "wagle_mask.safetensors"}
    mask = WeightMask.from_pretrained("user/mask")
    assert mask == WeightMask.load(run) and mask.info["base_model"] == "user/base"


def test_load_unlearned_makes_the_model_of_a_published_delta(run):
    publish(run, "user/delta", CARD, what="delta")
    assert files_of("user/delta") == {"README.md", "wagle_delta.safetensors", "wagle_mask.png"}
    model = load_unlearned("user/delta")
    assert same_weights(model, AutoModelForCausalLM.from_pretrained(run, dtype="auto"))
    assert model.dtype == torch.bfloat16
    assert SparseDelta.load(run).old is not None
    assert SparseDelta.from_pretrained("user/delta").old is None  # it holds what was forgotten


def test_load_unlearned_takes_the_revision_of_the_base_that_was_unlearned(run, tiny_model):
    publish(run, "user/delta", CARD, what="delta")
    tiny_model(seed=5, dtype=torch.bfloat16).push_to_hub("user/base")  # the base moves on
    assert same_weights(load_unlearned("user/delta"), AutoModelForCausalLM.from_pretrained(run, dtype="auto"))
    with pytest.raises(ValueError, match="for another base: 'user/base'"):
        load_unlearned("user/delta", base_model_name_or_path="user/base")


def test_load_unlearned_works_offline_from_the_cache_and_from_folders(run, tmp_path, hub):
    publish(run, "user/delta", CARD, what="delta", revision="v1")
    expected = load_unlearned("user/delta", revision="v1", cache_dir=tmp_path / "cache")
    requests = len(hub.requests)
    options = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    assert same_weights(load_unlearned("user/delta", revision="v1", **options), expected)
    assert same_weights(load_unlearned(run, base_model_name_or_path=str(tmp_path / "base")), expected)
    assert len(hub.requests) == requests


def test_a_delta_is_made_where_the_run_has_none(run):
    (run / "wagle_delta.safetensors").unlink()
    publish(run, "user/delta", CARD, what="delta")
    assert not (run / "wagle_delta.safetensors").exists()
    assert same_weights(load_unlearned("user/delta"), AutoModelForCausalLM.from_pretrained(run, dtype="auto"))


def test_no_local_path_is_published(run, tmp_path):
    mask = WeightMask.load(run)
    mask.info |= {"base_model": str(tmp_path / "base"), "base_revision": "None"}
    mask.save(run)
    (run / "wagle_delta.safetensors").unlink()
    with pytest.raises(ValueError, match=r"base model '.*base' is not on the Hub; give the name of the one that is"):
        publish(run, "user/delta", CARD, what="delta")
    publish(run, "user/delta", CARD, what="delta", base_model="user/base")
    publish(run, "user/model", CARD)
    assert same_weights(load_unlearned("user/delta"), AutoModelForCausalLM.from_pretrained(run, dtype="auto"))
    assert "base_model" not in WeightMask.from_pretrained("user/model").info
    for repo_id in ("user/delta", "user/model"):
        for name in files_of(repo_id):
            content = Path(HfApi().hf_hub_download(repo_id, name)).read_bytes()
            assert str(tmp_path).encode() not in content, name


@pytest.mark.parametrize("what", ["model", "mask", "delta"])
def test_a_push_that_fails_midway_harms_nothing_and_a_second_one_completes(what, run, hub):
    before = snapshot(run)
    hub.cut("PUT", "/lfs/", after_bytes=64, times=float("inf"), skip=1)
    with pytest.raises(ConnectionError, match="Push again: what has arrived is not sent again"):
        publish(run, "user/again", CARD, what=what)
    assert files_of("user/again") == set()  # nothing half done is seen
    assert snapshot(run) == before
    sent = {path.split("/")[2] for path in hub.requested("PUT", "/lfs/")}
    arrived = set(hub.repositories["user/again"].objects)
    assert arrived < sent
    hub.faults.clear()
    hub.requests.clear()
    publish(run, "user/again", CARD, what=what)
    resent = {path.split("/")[2] for path in hub.requested("PUT", "/lfs/")}
    assert resent.isdisjoint(arrived)
    assert WeightMask.load(run) == (
        SparseDelta.from_pretrained("user/again").mask if what == "delta" else WeightMask.from_pretrained("user/again")
    )


def test_a_commit_that_fails_leaves_the_repository_as_it_was(run, hub):
    publish(run, "user/model", CARD)
    sha = HfApi().repo_info("user/model").sha
    (~WeightMask.load(run)).save(run)
    hub.fail("POST", "/commit/")
    with pytest.raises(HfHubHTTPError):
        publish(run, "user/model", CARD)
    assert HfApi().repo_info("user/model").sha == sha


def test_a_branch_is_made_and_a_private_repository_stays_private(run, hub):
    publish(run, "user/model", CARD, private=True, revision="v2", commit_message="Second")
    assert hub.repositories["user/model"].private
    assert "model.safetensors" in files_of("user/model", "v2")
    assert "model.safetensors" not in files_of("user/model")


@pytest.mark.parametrize(
    ("what", "missing", "error", "message"),
    [
        ("model", "model.safetensors", ValueError, "holds no model"),
        ("mask", "wagle_mask.safetensors", FileNotFoundError, "No mask file at"),
    ],
)
def test_what_is_not_there_is_said_before_a_repository_is_made(what, missing, error, message, run, hub):
    (run / missing).unlink()
    with pytest.raises(error, match=message):
        publish(run, "user/nothing", CARD, what=what)
    assert "user/nothing" not in hub.repositories


EVALUATE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
model = AutoModelForCausalLM.from_pretrained("user/model", dtype="auto")
generate = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained("user/model"))
print(generate("Question: Where does Ada live?", max_new_tokens=4)[0]["generated_text"])
assert not {"wagle_trl", "wagle_kernels"} & sys.modules.keys()
"""


def test_another_process_without_this_package_loads_and_runs_the_model(run, hub, tmp_path):
    publish(run, "user/model", CARD)
    environment = os.environ | hub.environment
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Question: Where does Ada live?")
