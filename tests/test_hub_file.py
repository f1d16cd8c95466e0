"""Masks and deltas on the Hub and in folders, by the methods of the Hub's own mixin."""

import json

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from wagle_trl import SparseDelta, WeightMask
from wagle_trl.delta import weights_fingerprint

from .deltas import unlearned


@pytest.fixture
def mask():
    generator = torch.Generator().manual_seed(0)
    return WeightMask.from_dense({"w": torch.rand(7, 9, generator=generator) < 0.3}, {"score": "wagle", "seed": "0"})


@pytest.fixture
def delta(tiny_model):
    base = tiny_model(dtype=torch.bfloat16)
    model, mask = unlearned(base)
    return SparseDelta.from_model(model, mask, weights_fingerprint(base), base)


def assert_same(loaded, saved):
    if isinstance(saved, WeightMask):
        assert loaded == saved and loaded.info == saved.info
        return
    assert loaded.mask == saved.mask
    assert loaded.dtypes == saved.dtypes
    for name in saved.new:
        assert torch.equal(loaded.new[name], saved.new[name])
        assert torch.equal(loaded.old[name], saved.old[name])


@pytest.fixture(params=["mask", "delta"])
def saved(request):
    return request.getfixturevalue(request.param)


def test_what_is_pushed_comes_back_bit_by_bit(saved, hub):
    url = saved.push_to_hub("user/repo")
    assert url.startswith(hub.url)
    assert_same(type(saved).from_pretrained("user/repo"), saved)
    assert sorted(HfApi().list_repo_files("user/repo")) == [".gitattributes", "README.md", saved.file_name]
    card = ModelCard.load("user/repo")
    assert card.data.library_name == "wagle-trl" and "unlearning" in card.data.tags


def test_revision_token_cache_and_local_files_only_are_those_of_the_hub(mask, hub, tmp_path):
    mask.push_to_hub("user/repo", private=True)
    first = HfApi().repo_info("user/repo").sha
    other = ~mask
    other.push_to_hub("user/repo", commit_message="The others")
    load = WeightMask.from_pretrained
    assert load("user/repo", revision=first) == mask
    assert load("user/repo", cache_dir=tmp_path / "cache") == other
    assert list((tmp_path / "cache").glob("models--user--repo"))
    with pytest.raises(RepositoryNotFoundError):
        load("user/repo", token=False)
    requests = len(hub.requests)
    assert load("user/repo", cache_dir=tmp_path / "cache", local_files_only=True) == other
    with pytest.raises(LocalEntryNotFoundError):
        load("user/repo", cache_dir=tmp_path / "empty", local_files_only=True)
    assert len(hub.requests) == requests


def test_a_branch_is_pushed_to(mask, hub):
    mask.push_to_hub("user/repo")
    HfApi().create_branch("user/repo", branch="mine")
    (~mask).push_to_hub("user/repo", branch="mine")
    assert WeightMask.from_pretrained("user/repo") == mask
    assert WeightMask.from_pretrained("user/repo", revision="mine") == ~mask


def test_the_card_and_config_of_a_model_stay_when_a_mask_joins_it(mask, hub, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine")
    HfApi().create_repo("user/model")
    HfApi().upload_folder(repo_id="user/model", folder_path=tmp_path)
    mask.push_to_hub("user/model")
    assert ModelCard.load("user/model").text.strip() == "# Mine"
    assert "config.json" in HfApi().list_repo_files("user/model")
    mask.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text().endswith("# Mine")
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "llama"}
    assert WeightMask.from_pretrained(tmp_path) == mask


def test_save_pretrained_pushes_if_asked(mask, hub, tmp_path):
    url = mask.save_pretrained(tmp_path / "my-mask", push_to_hub=True)
    assert url.startswith(f"{hub.url}/user/my-mask/")
    assert WeightMask.from_pretrained("user/my-mask") == mask == WeightMask.from_pretrained(tmp_path / "my-mask")
    assert sorted(path.name for path in (tmp_path / "my-mask").iterdir()) == ["README.md", "wagle_mask.safetensors"]


def test_an_upload_that_breaks_off_can_be_repeated(saved, hub):
    hub.cut("PUT", "/lfs/", after_bytes=100, times=float("inf"))
    with pytest.raises((HfHubHTTPError, OSError, RuntimeError)):
        saved.push_to_hub("user/repo")
    with pytest.raises(EntryNotFoundError):
        type(saved).from_pretrained("user/repo")
    hub.faults.clear()
    saved.push_to_hub("user/repo")
    assert_same(type(saved).from_pretrained("user/repo"), saved)


def test_a_download_that_breaks_off_leaves_no_file_and_goes_on(saved, hub):
    saved.push_to_hub("user/repo")
    hub.cut("GET", saved.file_name, after_bytes=50)
    assert_same(type(saved).from_pretrained("user/repo"), saved)


def test_a_damaged_file_in_a_repository_is_refused(mask, hub, tmp_path):
    path = mask.save(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    HfApi().create_repo("user/damaged")
    HfApi().upload_folder(repo_id="user/damaged", folder_path=tmp_path)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        WeightMask.from_pretrained("user/damaged")
