"""Masks and deltas on the Hub and in folders, by the methods of the Hub's own mixin."""

import json
from dataclasses import replace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from wagle_trl import SparseDelta, WeightMask
from wagle_trl.deltas.delta import weights_fingerprint
from wagle_trl.files.hub_file import public_base
from wagle_trl.masks.info import UNKNOWN_REVISION, MaskInfo

from ..support.deltas import unlearned

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def mask():
    generator = torch.Generator().manual_seed(0)
    return WeightMask.from_dense({"w": torch.rand(7, 9, generator=generator) < 0.3}, MaskInfo(score="wagle", seed=0))


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
    with pytest.raises(
        FileNotFoundError, match=r"'user/repo' is neither .*it does not exist, or this token has no access"
    ):
        load("user/repo", token=False)
    requests = len(hub.requests)
    assert load("user/repo", cache_dir=tmp_path / "cache", local_files_only=True) == other
    with pytest.raises(FileNotFoundError, match=r"'user/repo' is neither .* \(Cannot find .* disk cache"):
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


@pytest.mark.parametrize("ignored", [None, "*.png", ["*.png"]])
def test_a_card_stays_whatever_name_and_patterns_are_given(ignored, mask, hub, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine")
    HfApi().create_repo("mymask")
    HfApi().upload_folder(repo_id="user/mymask", folder_path=tmp_path)
    mask.push_to_hub("mymask", ignore_patterns=ignored)
    assert ModelCard.load("user/mymask").text.strip() == "# Mine"
    assert WeightMask.from_pretrained("user/mymask") == mask


def test_a_card_says_what_the_file_holds_and_how_to_load_it(saved, hub):
    counted = saved.selection
    counted.info = replace(counted.info, base_model="org/base", base_revision=COMMIT, score="`wagle`\n# x")
    saved.push_to_hub("user/repo")
    card = ModelCard.load("user/repo")
    assert f"{counted.num_selected:,} of the {counted.numel:,} weights in scope (" in card.text
    assert "score `wagle # x`" in card.text and "https://huggingface.co/org/base" in card.text
    how = 'load_unlearned("user/repo")' if saved is not counted else 'WeightMask.from_pretrained("user/repo")'
    assert how in card.text
    assert (card.data.base_model, card.data.base_model_relation) == ("org/base", "adapter")
    assert "More Information Needed" not in card.text


def test_a_base_that_is_a_folder_is_not_named_in_file_or_card(saved, hub, tmp_path):
    folder = str(tmp_path / "base")
    mask = saved.selection
    mask.info = replace(mask.info, base_model=folder, base_revision=UNKNOWN_REVISION)
    saved.push_to_hub("user/repo")
    for name in HfApi().list_repo_files("user/repo"):
        assert folder.encode() not in hub.repositories["user/repo"].files("main")[name].content
    assert ModelCard.load("user/repo").data.base_model is None
    saved.push_to_hub("user/named", base_model="org/base")
    loaded = type(saved).from_pretrained("user/named")
    assert loaded.selection.info.base_model == ModelCard.load("user/named").data.base_model == "org/base"
    assert mask.info.base_model == folder


def test_old_values_stay_at_home(delta, hub, tmp_path):
    delta.save_pretrained(tmp_path / "mine", push_to_hub=True)
    assert SparseDelta.from_pretrained("user/mine").old is None
    assert delta.old is not None and SparseDelta.load(tmp_path / "mine").old is not None


HUB, FOLDER, OTHER = ("a/b", COMMIT), (None, None), ("c/d", None)


@pytest.mark.parametrize(
    ("name", "revision", "base_model", "is_local", "expected"),
    [
        ("a/b", COMMIT, None, None, HUB),
        ("a/b", "None", None, None, FOLDER),  # 'patients/base' looks the same
        ("a/b", None, None, None, FOLDER),
        ("a/b", COMMIT, None, True, FOLDER),
        ("a/b", COMMIT, None, False, HUB),
        ("a/b", None, None, False, ("a/b", None)),
        ("gpt2", COMMIT, None, None, ("gpt2", COMMIT)),
        ("here/base", COMMIT, None, None, FOLDER),
        ("/a/b", COMMIT, None, False, FOLDER),
        ("a/b/c", COMMIT, None, False, FOLDER),
        ("./b", COMMIT, None, None, FOLDER),
        ("a/b/", COMMIT, None, None, FOLDER),
        (None, None, None, None, FOLDER),
        ("a/b", COMMIT, "c/d", None, OTHER),
        ("/a/b", "None", "c/d", True, OTHER),
        (None, None, "c/d", None, OTHER),
        ("a/b", COMMIT, "a/b", None, HUB),
    ],
)
def test_only_a_base_that_came_from_the_hub_is_named(
    name, revision, base_model, is_local, expected, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "base").mkdir(parents=True)
    assert public_base(name, revision, base_model, is_local) == expected


@pytest.mark.parametrize("name", ["/a/b", "a/b/c", "here/base"])
def test_a_path_is_no_name_of_a_base(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "base").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"'{name}' is a local path; give the name of the base model on the Hub"):
        public_base(None, None, name)


@pytest.mark.parametrize("name", ["/none", "./none", "none/", "a/b/none", "none/wagle_mask.safetensors", "../none"])
def test_the_hub_is_not_asked_for_a_path(name, saved, hub):
    with pytest.raises(FileNotFoundError, match=r"^No (mask file|delta) at .*none"):
        type(saved).from_pretrained(name)
    assert not hub.requests


def test_a_folder_that_is_mistyped_is_named(mask, hub):
    with pytest.raises(FileNotFoundError, match=r"^'nonexist' is neither a folder here nor a repository of the Hub"):
        WeightMask.from_pretrained("nonexist")


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
