"""What a run made, published and loaded again by the real client of the Hub."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from wagle_trl import SparseDelta, WeightMask, load_unlearned
from wagle_trl.deltas.delta import weights_fingerprint
from wagle_trl.deltas.on_disk import delta_between
from wagle_trl.files.checkpoint import Checkpoint
from wagle_trl.files.manifest import Manifest
from wagle_trl.hub.load import base_of, checkpoint_of
from wagle_trl.hub.publish import publish
from wagle_trl.masks.info import UNKNOWN_REVISION

from ..support.deltas import same_weights, unlearned


@pytest.fixture
def run(tiny_model, tiny_tokenizer, tmp_path, hub):
    """Folder of an unlearned model whose base is `user/base` on the Hub, with files that are nobody's business."""
    base, folder = tiny_model(dtype=torch.bfloat16), tmp_path / "run"
    base.push_to_hub("user/base")
    tiny_tokenizer.push_to_hub("user/base")
    model, mask = unlearned(base)
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    mask.info = replace(mask.info, base_revision=HfApi().repo_info("user/base").sha)
    mask.save(folder)
    base.save_pretrained(tmp_path / "base")
    delta_between(Checkpoint(tmp_path / "base"), Checkpoint(folder), mask, undo=True, progress=False).save(folder)
    for name in ("wagle_report.json", "wagle_eval.json", "trainer_state.json"):
        (folder / name).write_text(json.dumps({"forget_dataset": "secret.jsonl"}))
    (folder / "wagle_records.jsonl").write_text("what was forgotten\n")
    for name in ("forget.json", "prompts.txt", "consolidated.safetensors", "training_args.bin"):
        (folder / name).write_bytes(b"what was forgotten")
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
    commit = publish(run, "user/model", CARD).commit
    assert commit.startswith(f"{hub.url}/user/model/commit/")
    assert same_weights(
        AutoModelForCausalLM.from_pretrained("user/model", dtype="auto"),
        AutoModelForCausalLM.from_pretrained(run, dtype="auto"),
    )
    assert len(AutoTokenizer.from_pretrained("user/model")) == len(AutoTokenizer.from_pretrained(run))
    assert WeightMask.from_pretrained("user/model") == WeightMask.load(run)
    assert ModelCard.load("user/model").text.strip() == "# Mine"
    assert snapshot(run) == before


def test_what_is_private_and_what_executes_stays_at_home_and_is_named(run):
    left_out = publish(run, "user/model", CARD).left_out
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
    assert left_out == [
        "checkpoint-3/",
        "consolidated.safetensors",
        "forget.json",
        "prompts.txt",
        "trainer_state.json",
        "training_args.bin",
        "wagle_delta.safetensors",
        "wagle_eval.json",
        "wagle_records.jsonl",
        "wagle_report.json",
    ]


def test_a_published_mask_is_that_of_the_run(run):
    publish(run, "user/mask", CARD, what="mask")
    assert files_of("user/mask") == {"README.md", "wagle_mask.png", "wagle_mask.safetensors"}
    mask = WeightMask.from_pretrained("user/mask")
    assert mask == WeightMask.load(run) and mask.info.base_model == "user/base"


def test_load_unlearned_makes_the_model_of_a_published_delta(run):
    publish(run, "user/delta", CARD, what="delta")
    assert files_of("user/delta") == {"README.md", "wagle_delta.safetensors", "wagle_mask.png"}
    model = load_unlearned("user/delta")
    assert same_weights(model, AutoModelForCausalLM.from_pretrained(run, dtype="auto"))
    assert model.dtype == torch.bfloat16
    assert SparseDelta.load(run).old is not None
    assert SparseDelta.from_pretrained("user/delta").old is None  # it holds what was forgotten


def test_load_unlearned_gives_each_weight_its_dtype(tiny_model, tmp_path, hub):
    base = tiny_model(dtype=torch.bfloat16)
    for name, parameter in base.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.float() + 1e-4
    model, mask = unlearned(base)
    SparseDelta.from_model(model, mask, weights_fingerprint(base)).save(tmp_path / "delta")
    base.save_pretrained(tmp_path / "base")
    made = load_unlearned(tmp_path / "delta", base_model_name_or_path=str(tmp_path / "base"))
    assert same_weights(made, model)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16, torch.float32}
    with pytest.raises(
        ValueError, match=r"weights in torch.float32, got dtype=torch.float16; convert the model after"
    ):
        load_unlearned(tmp_path / "delta", base_model_name_or_path=str(tmp_path / "base"), dtype=torch.float16)


def test_load_unlearned_takes_the_revision_of_the_base_that_was_unlearned(run, tiny_model):
    publish(run, "user/delta", CARD, what="delta")
    tiny_model(seed=5, dtype=torch.bfloat16).push_to_hub("user/base")  # the base moves on
    assert same_weights(load_unlearned("user/delta"), AutoModelForCausalLM.from_pretrained(run, dtype="auto"))
    with pytest.raises(ValueError, match="for another base: 'user/base'"):
        load_unlearned("user/delta", base_revision="main")


def test_a_base_given_by_the_name_that_is_recorded_is_taken_at_its_revision(run, tiny_model):
    expected = AutoModelForCausalLM.from_pretrained(run, dtype="auto")
    tiny_model(seed=5, dtype=torch.bfloat16).push_to_hub("user/base")  # the base moves on
    (run / "wagle_delta.safetensors").unlink()
    publish(run, "user/delta", CARD, what="delta", base_model="user/base")
    assert same_weights(load_unlearned("user/delta", base_model_name_or_path="user/base"), expected)
    delta = SparseDelta.from_pretrained("user/delta")
    assert base_of(delta, "user/base").folder == base_of(delta, None).folder != checkpoint_of("user/base").folder


def test_the_revision_of_one_base_is_not_that_of_another(run, tiny_model):
    tiny_model(dtype=torch.bfloat16).push_to_hub("user/copy")
    publish(run, "user/delta", CARD, what="delta", base_model="user/copy")
    delta = SparseDelta.from_pretrained("user/delta")
    assert (delta.base_model, delta.base_revision) == ("user/copy", None)
    assert same_weights(load_unlearned("user/delta"), AutoModelForCausalLM.from_pretrained(run, dtype="auto"))


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


def stale_mask(run):
    (~WeightMask.load(run)).save(run)


def stale_values(run):
    model = AutoModelForCausalLM.from_pretrained(run, dtype="auto")
    for name, mask in ((name, WeightMask.load(run).dense(name)) for name in WeightMask.load(run).bits):
        model.get_parameter(name).data[mask] += 1
    model.save_pretrained(run)


def widened_mask(run, name="model.norm.weight"):
    mask = WeightMask.load(run)
    dense = {name: mask.dense(name) for name in mask.bits}
    dense[name][:] = True
    WeightMask.from_dense(dense, mask.info).save(run)


@pytest.mark.parametrize("change", [stale_values, widened_mask])
def test_a_delta_of_an_earlier_run_is_not_published_but_made_anew(change, run):
    change(run)
    before = snapshot(run)
    publish(run, "user/delta", CARD, what="delta")
    assert SparseDelta.from_pretrained("user/delta").mask == WeightMask.load(run)
    assert same_weights(load_unlearned("user/delta"), AutoModelForCausalLM.from_pretrained(run, dtype="auto"))
    assert snapshot(run) == before


def without_weights(run):
    stale_mask(run)
    (run / "model.safetensors").unlink()


@pytest.mark.parametrize("change", [stale_mask, without_weights])
def test_a_delta_that_is_out_of_date_and_cannot_be_made_anew_is_one_error(change, run, hub):
    change(run)
    with pytest.raises(ValueError, match=r"wagle_delta.safetensors' is not of the mask and weights beside it, and no"):
        publish(run, "user/delta", CARD, what="delta")
    assert "user/delta" not in hub.repositories


def test_a_delta_without_weights_such_as_a_merged_one_is_published(run):
    expected = AutoModelForCausalLM.from_pretrained(run, dtype="auto")
    (run / "model.safetensors").unlink()
    publish(run, "user/delta", CARD, what="delta")
    assert same_weights(load_unlearned("user/delta"), expected)


def upload(repo_id, *names):
    api = HfApi()
    api.create_repo(repo_id, exist_ok=True)
    for name in names:
        api.upload_file(path_or_fileobj=b"of another run", path_in_repo=name, repo_id=repo_id)


def test_a_model_takes_the_place_of_one_that_was_there(run, tiny_model):
    tiny_model(seed=5).push_to_hub("user/model")  # one file, which transformers would prefer to shards
    old = ("model.fp16.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf")
    old += ("adapter_config.json", "adapter_model.safetensors", "wagle_delta.safetensors", "model[1].safetensors")
    kept = ("LICENSE", "onnx/model.onnx", "notes.json")
    upload("user/model", *old, *kept)
    model = AutoModelForCausalLM.from_pretrained(run, dtype="auto")
    (run / "model.safetensors").unlink()
    model.save_pretrained(run, max_shard_size="40KB")
    publish(run, "user/model", CARD)
    files = files_of("user/model")
    assert files.isdisjoint({*old, "model.safetensors"}) and files >= set(kept)
    assert same_weights(AutoModelForCausalLM.from_pretrained("user/model", dtype="auto"), model)


def test_weights_that_stay_in_earlier_commits_are_named(run):
    assert publish(run, "user/model", CARD).replaced == []
    assert publish(run, "user/model", CARD).replaced == []  # the same again
    upload("user/model", "pytorch_model.bin")
    stale_values(run)
    assert publish(run, "user/model", CARD).replaced == ["pytorch_model.bin", "model.safetensors"]
    assert publish(run, "user/model", CARD, what="delta").replaced == []
    stale_values(run)
    assert publish(run, "user/model", CARD, what="delta").replaced == ["wagle_delta.safetensors"]


def add_mask(run):
    Manifest.of(run, ["model.safetensors"]).write(run)


def other_mask(run):
    Manifest.of(run, ["model.safetensors", "wagle_mask.safetensors"]).write(run)
    stale_mask(run)


def other_weights(run):
    Manifest.of(run, ["model.safetensors", "wagle_mask.safetensors"]).write(run)
    stale_values(run)


@pytest.mark.parametrize(
    ("change", "whats"),
    [(add_mask, ("model", "mask", "delta")), (other_mask, ("model", "mask")), (other_weights, ("model",))],
)
def test_what_the_manifest_knows_as_of_another_run_is_not_published(change, whats, run, hub):
    change(run)
    for what in whats:
        with pytest.raises(
            ValueError, match=r"according to wagle_manifest\.json it belongs to another run than the files beside it"
        ):
            publish(run, f"user/{what}", CARD, what=what)
        assert f"user/{what}" not in hub.repositories


def test_a_delta_made_after_the_run_is_published(run):
    Manifest.of(run, ["model.safetensors", "wagle_mask.safetensors"]).write(run)
    publish(run, "user/delta", CARD, what="delta")
    assert same_weights(load_unlearned("user/delta"), AutoModelForCausalLM.from_pretrained(run, dtype="auto"))


def test_a_model_without_a_mask_takes_the_place_of_one_with_a_mask(run):
    publish(run, "user/model", CARD)
    (run / "wagle_mask.safetensors").unlink()
    publish(run, "user/model", CARD)
    assert files_of("user/model").isdisjoint({"wagle_mask.safetensors", "wagle_mask.png"})


def test_masks_and_deltas_join_a_model_but_no_delta_stands_beside_another_mask(run):
    publish(run, "user/model", CARD)
    weights = HfApi().get_paths_info("user/model", "model.safetensors")
    for what in ("mask", "delta"):
        publish(run, "user/model", CARD, what=what)
    assert files_of("user/model") >= {"wagle_mask.safetensors", "wagle_delta.safetensors", "tokenizer.json"}
    assert HfApi().get_paths_info("user/model", "model.safetensors") == weights
    widened_mask(run)
    publish(run, "user/model", CARD, what="delta")
    assert "wagle_mask.safetensors" not in files_of("user/model")
    upload("user/model", "wagle_mask.safetensors")
    publish(run, "user/model", CARD, what="delta")
    assert files_of("user/model") >= {"wagle_delta.safetensors", "model.safetensors"}
    assert "wagle_mask.safetensors" not in files_of("user/model")


def test_what_loads_a_model_is_downloaded_and_nothing_else(run, hub):
    HfApi().create_repo("user/all")
    HfApi().upload_folder(repo_id="user/all", folder_path=run)
    upload("user/all", "original/model.safetensors", "model.fp16.safetensors", "modeling.py")
    folder = checkpoint_of("user/all").folder
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize("name", ["/none", "./none", "none/", "a/none/c", "none.safetensors"])
def test_the_hub_is_not_asked_for_a_path(name, hub):
    with pytest.raises(FileNotFoundError, match=r"No model at '.*none.*': the folder does not exist"):
        checkpoint_of(name)
    assert not hub.requests


def test_a_folder_that_is_mistyped_is_named(hub):
    with pytest.raises(FileNotFoundError, match=r"^'nonexist' is neither a folder here nor a repository of the Hub"):
        checkpoint_of("nonexist")


def write_report(folder, **report):
    (folder / "wagle_report.json").write_text(json.dumps(report))


def test_the_report_knows_whether_a_relative_path_was_a_folder(run):
    mask = WeightMask.load(run)
    mask.info = replace(mask.info, base_model="patients/base", base_revision=UNKNOWN_REVISION)
    mask.save(run)
    (run / "wagle_delta.safetensors").unlink()
    for report in ({"base_model": "patients/base", "base_is_local": True}, {}):
        write_report(run, **report)
        publish(run, "user/mask", CARD, what="mask")
        assert WeightMask.from_pretrained("user/mask").info.base_model is None
        with pytest.raises(ValueError, match="'patients/base' is not known to be on the Hub"):
            publish(run, "user/delta", CARD, what="delta")  # and the Hub is not asked for it
    write_report(run, base_model="patients/base", base_is_local=False)
    publish(run, "user/mask", CARD, what="mask")
    assert WeightMask.from_pretrained("user/mask").info.base_model == "patients/base"


@pytest.fixture
def adapters(tiny_model, tmp_path, hub):
    """Folder of LoRA adapters for the model in `patients/base`, which is `user/base` on the Hub."""
    base, folder = tiny_model(), tmp_path / "adapters"
    base.push_to_hub("user/base")
    base.save_pretrained(tmp_path / "patients" / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "patients" / "base")
    lora = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(folder)
    return folder


def test_adapters_name_their_base_on_the_hub(adapters, tmp_path):
    before = snapshot(adapters)
    with pytest.raises(ValueError, match=r"'.*base' is not known to be on the Hub; give the name of the one that is"):
        publish(adapters, "user/adapters", CARD)
    publish(adapters, "user/adapters", CARD, base_model="user/base")
    assert files_of("user/adapters") == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert same_weights(
        AutoPeftModelForCausalLM.from_pretrained("user/adapters"), AutoPeftModelForCausalLM.from_pretrained(adapters)
    )
    assert str(tmp_path) not in Path(HfApi().hf_hub_download("user/adapters", "adapter_config.json")).read_text()
    assert snapshot(adapters) == before


def test_adapters_whose_base_came_from_the_hub_keep_its_name(adapters):
    path = adapters / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "user/base"}))
    write_report(adapters, base_model="user/base", base_is_local=False)
    publish(adapters, "user/adapters", CARD)
    config = json.loads(Path(HfApi().hf_hub_download("user/adapters", "adapter_config.json")).read_text())
    assert config["base_model_name_or_path"] == "user/base"


def test_no_local_path_is_published(run, tmp_path):
    mask = WeightMask.load(run)
    mask.info = replace(mask.info, base_model=str(tmp_path / "base"), base_revision=UNKNOWN_REVISION)
    mask.save(run)
    (run / "wagle_delta.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"base model '.*base' is not known to be on the Hub; give the name of the one"
    ):
        publish(run, "user/delta", CARD, what="delta")
    publish(run, "user/delta", CARD, what="delta", base_model="user/base")
    publish(run, "user/model", CARD)
    assert same_weights(load_unlearned("user/delta"), AutoModelForCausalLM.from_pretrained(run, dtype="auto"))
    assert WeightMask.from_pretrained("user/model").info.base_model is None
    for repo_id in ("user/delta", "user/model"):
        for name in files_of(repo_id):
            content = Path(HfApi().hf_hub_download(repo_id, name)).read_bytes()
            assert str(tmp_path).encode() not in content, name


@pytest.mark.parametrize("what", ["model", "mask", "delta"])
def test_a_push_that_fails_midway_harms_nothing_and_a_second_one_completes(what, run, hub):
    before = snapshot(run)
    hub.cut("PUT", "/lfs/", after_bytes=64, times=float("inf"), skip=1)
    with pytest.raises(ConnectionError, match="Push again: files that have arrived are not sent again"):
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
