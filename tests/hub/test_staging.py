"""What of a run's folder is taken, and that links do not lead out of it."""

import json
import os

import pytest
from peft import LoraConfig, get_peft_model

from wagle_trl.files.model_files import ADAPTER_CONFIG
from wagle_trl.hub.staging import STAGES, link_or_copy, stage_model, symlink

from ..support.deltas import unlearned


@pytest.fixture
def run(tiny_model, tiny_tokenizer, tmp_path):
    """Folder of an unlearned model with its mask."""
    model, mask = unlearned(tiny_model())
    model.save_pretrained(tmp_path / "run")
    tiny_tokenizer.save_pretrained(tmp_path / "run")
    mask.save(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def stage(tmp_path):
    (tmp_path / "stage").mkdir()
    return tmp_path / "stage"


LINKS = {
    "vocab.txt": "model",
    "tokenizer.json": "model",
    "model.safetensors": "model",
    "wagle_mask.safetensors": "mask",
    "wagle_delta.safetensors": "delta",
}


@pytest.mark.parametrize(("name", "what"), LINKS.items(), ids=LINKS)
def test_a_link_out_of_the_folder_is_refused(name, what, run, stage, tmp_path):
    if (run / name).exists():
        (run / name).rename(tmp_path / "id_rsa")
    else:
        (tmp_path / "id_rsa").write_text("secret")
    (run / name).symlink_to("../id_rsa")
    with pytest.raises(
        ValueError, match=rf"run/{name} links to a file elsewhere, .*id_rsa; replace the link by the file"
    ):
        STAGES[what](run, stage, None)


def test_adapters_may_not_be_links_out_of_the_folder(run, stage, tmp_path, tiny_model):
    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapters")
    (tmp_path / "adapters" / "adapter_model.safetensors").rename(tmp_path / "id_rsa")
    (tmp_path / "adapters" / "adapter_model.safetensors").symlink_to("../id_rsa")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors links to a file elsewhere"):
        stage_model(tmp_path / "adapters", stage, None)


def test_links_within_the_folder_and_to_the_blobs_of_the_cache_are_taken(run, stage, tmp_path):
    (run / "model.safetensors").rename(run / "model-1.safetensors")
    (run / "model.safetensors").symlink_to("model-1.safetensors")
    stage_model(run, stage, None)
    assert (stage / "model.safetensors").read_bytes() == (run / "model-1.safetensors").read_bytes()

    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in run.iterdir():
        os.rename(path, blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    (tmp_path / "other").mkdir()
    stage_model(snapshot, tmp_path / "other", None)
    assert {path.name for path in (tmp_path / "other").iterdir()} == {path.name for path in stage.iterdir()}


def test_shards_beside_a_whole_model_stay_at_home(run, stage, tiny_model):
    whole = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    tiny_model(seed=1).save_pretrained(run, max_shard_size="40KB")
    (run / "model.safetensors").write_bytes(whole)
    stage_model(run, stage, None)
    assert [path.name for path in stage.glob("model*")] == ["model.safetensors"]


def test_of_shards_those_of_the_index_are_taken(run, stage, tiny_model):
    (run / "model.safetensors").unlink()
    tiny_model(seed=1).save_pretrained(run, max_shard_size="40KB")
    shards = {path.name for path in run.glob("model-*")}
    (run / "model-00001-of-00099.safetensors").write_bytes(b"of an earlier model")
    stage_model(run, stage, None)
    assert {path.name for path in stage.glob("model*")} == {*shards, "model.safetensors.index.json"}


def test_a_folder_with_a_model_and_adapters_is_refused(run, stage, tiny_model):
    get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"])).save_pretrained(run)
    with pytest.raises(ValueError, match="run' holds a model and adapters; keep those that the run made"):
        stage_model(run, stage, None)
    (run / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"run' holds {ADAPTER_CONFIG}, but no adapter_model.safetensors"):
        stage_model(run, stage, None)


def test_what_is_kept_outlives_its_source_on_any_disk(run, tmp_path, monkeypatch):
    for name in ("linked", "copied"):
        source, place = run / "config.json", tmp_path / name
        if name == "copied":
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another disk")))
        link_or_copy(source, place)
        assert place.read_bytes() == source.read_bytes() and not place.is_symlink()
    symlink(run / "config.json", tmp_path / "lent")
    assert (tmp_path / "lent").is_symlink()


def test_no_config_says_in_which_folder_a_model_or_its_tokenizer_was(run, stage):
    private = {"_name_or_path": "/home/ada/base", "tokenizer_file": "/home/ada/tokenizer.json", "kept": 1}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(content | private))
    stage_model(run, stage, None)
    for name in ("config.json", "tokenizer_config.json"):
        assert "ada" not in (stage / name).read_text() and json.loads((stage / name).read_text())["kept"] == 1
        assert "ada" in (run / name).read_text()
