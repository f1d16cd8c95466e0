"""The real client works against the Hub of the tests as it does against the Hub."""

import hashlib
import inspect
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import (
    HfApi,
    ModelCard,
    ModelHubMixin,
    constants,
    get_safetensors_metadata,
    get_session,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

REPO = "user/model"
CARD = "---\nlicense: mit\ntags:\n- unlearning\n---\n\n# A model\n"
FILES = {
    "README.md": CARD.encode(),
    "notes/über uns.txt": "Ä file with a name to quote".encode(),
    "empty.txt": b"",
    "model.safetensors": bytes(range(256)) * 4096,
    "deltas/delta.safetensors": bytes(reversed(range(256))) * 1024,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Regular files and two LFS files."""
    for name, content in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "folder"


@pytest.fixture
def pushed(hub, folder) -> str:
    """Commit of a repository with these files."""
    HfApi().create_repo(REPO)
    return HfApi().upload_folder(repo_id=REPO, folder_path=folder).oid


def contents(snapshot: str) -> dict[str, bytes]:
    """Files of a folder, without what a new repository starts with."""
    paths = [path for path in Path(snapshot).rglob("*") if path.is_file() and path.name != ".gitattributes"]
    return {path.relative_to(snapshot).as_posix(): path.read_bytes() for path in paths}


def upload_path(name: str) -> str:
    """Where the client uploads an LFS file."""
    return f"/lfs/{hashlib.sha256(FILES[name]).hexdigest()}/{REPO}"


# Uploads and downloads


def test_an_uploaded_folder_comes_back_byte_for_byte(pushed):
    assert contents(snapshot_download(REPO)) == FILES


def test_single_files_come_back_byte_for_byte(pushed):
    for name, content in FILES.items():
        assert Path(hf_hub_download(REPO, name)).read_bytes() == content


def test_only_weights_are_uploaded_as_lfs(hub, pushed):
    weights = [upload_path(name) for name in FILES if name.endswith(".safetensors")]
    assert sorted(hub.requested("PUT")) == sorted(weights)


def test_a_second_upload_sends_no_weights_again(hub, pushed, folder):
    hub.requests.clear()
    (folder / "README.md").write_text(CARD + "More.\n")
    (folder / "model.safetensors").rename(folder / "renamed.safetensors")
    commit = HfApi().upload_folder(repo_id=REPO, folder_path=folder).oid
    assert commit != pushed
    assert not hub.requested("PUT")
    assert Path(hf_hub_download(REPO, "renamed.safetensors")).read_bytes() == FILES["model.safetensors"]


def test_an_upload_without_changes_makes_no_commit(hub, pushed, folder):
    assert HfApi().upload_folder(repo_id=REPO, folder_path=folder).oid == pushed
    assert len(hub.requested("POST", "/commit/")) == 1


def test_deleted_files_are_gone_from_the_new_commit_alone(pushed):
    HfApi().delete_file("empty.txt", REPO)
    HfApi().delete_folder("notes", REPO)
    kept = {name: content for name, content in FILES.items() if name not in ("empty.txt", "notes/über uns.txt")}
    assert contents(snapshot_download(REPO)) == kept
    assert contents(snapshot_download(REPO, revision=pushed)) == FILES


def test_a_branch_and_an_old_commit_stay_readable(pushed):
    HfApi().create_branch(REPO, branch="a/branch", revision=pushed)
    for branch in ("main", "a/branch"):
        HfApi().upload_file(path_or_fileobj=branch.encode(), path_in_repo="name", repo_id=REPO, revision=branch)
        assert Path(hf_hub_download(REPO, "name", revision=branch)).read_text() == branch
    assert contents(snapshot_download(REPO, revision=pushed)) == FILES


def test_a_second_download_transfers_no_body(hub, pushed):
    hf_hub_download(REPO, "model.safetensors")
    hub.requests.clear()
    hf_hub_download(REPO, "model.safetensors")
    assert hub.requested("HEAD", "/resolve/") and not hub.requested("GET", "/resolve/")


def test_parts_of_a_file_can_be_read(hub, pushed):
    def read(span: str):
        return get_session().get(
            f"{hub.url}/{REPO}/resolve/main/model.safetensors", headers={"Range": f"bytes={span}"}
        )

    weights = FILES["model.safetensors"]
    assert (read("10-19").content, read("1000-").content) == (weights[10:20], weights[1000:])
    assert (read("10-19").status_code, read(f"{len(weights)}-").status_code) == (206, 416)


def test_the_header_of_weights_can_be_read(hub, tiny_model):
    tiny_model().push_to_hub(REPO)
    total = sum(weight.numel() for weight in tiny_model().parameters())
    assert sum(get_safetensors_metadata(REPO).parameter_count.values()) == total


# What the Hub knows


def test_the_info_of_a_model_tells_commit_files_and_metadata(pushed):
    info = HfApi().model_info(REPO, files_metadata=True)
    assert info.sha == pushed
    assert {sibling.rfilename: sibling.size for sibling in info.siblings if sibling.rfilename in FILES} == {
        name: len(content) for name, content in FILES.items()
    }
    assert info.card_data.license == "mit" and info.tags == ["unlearning"]


def test_files_and_folders_are_listed(pushed):
    api = HfApi()
    assert set(api.list_repo_files(REPO)) == {*FILES, ".gitattributes"}
    assert [entry.path for entry in api.list_repo_tree(REPO, "deltas")] == ["deltas/delta.safetensors"]
    assert {"deltas", "notes"} <= {entry.path for entry in api.list_repo_tree(REPO)}
    lfs = api.get_paths_info(REPO, ["model.safetensors"])[0].lfs
    assert lfs.sha256 == hashlib.sha256(FILES["model.safetensors"]).hexdigest()


def test_the_existence_of_files_and_repositories_can_be_asked_for(pushed):
    api = HfApi()
    assert api.file_exists(REPO, "README.md") and not api.file_exists(REPO, "missing")
    assert api.repo_exists(REPO) and not api.repo_exists("user/missing")
    assert api.revision_exists(REPO, "main") and not api.revision_exists(REPO, "missing")


def test_the_token_tells_the_user(hub):
    assert HfApi().whoami()["name"] == hub.user


# Refusals


def test_what_is_missing_has_the_errors_of_the_client(pushed):
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(REPO, "missing")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "README.md", revision="missing")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("user/missing", "README.md")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).model_info("missing")


def test_a_private_repository_opens_to_its_token_only(hub):
    HfApi().create_repo(REPO, private=True)
    assert HfApi().model_info(REPO).private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).model_info(REPO)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(token="hf_other").model_info(REPO)


def test_nothing_is_written_without_a_token(pushed):
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token=False).upload_file(path_or_fileobj=b"", path_in_repo="new", repo_id=REPO)
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi().create_repo("other/model")


def test_a_repository_is_created_once(pushed):
    with pytest.raises(HfHubHTTPError, match="409"):
        HfApi().create_repo(REPO)
    assert HfApi().create_repo(REPO, exist_ok=True).repo_id == REPO


def test_weights_that_did_not_arrive_are_refused(hub, folder):
    HfApi().create_repo(REPO)
    hub.fail("PUT", "/lfs/", times=math.inf, status=200)
    with pytest.raises(RuntimeError, match="Error while uploading"):
        HfApi().upload_folder(repo_id=REPO, folder_path=folder)
    hub.fail("POST", "/verify", times=math.inf, status=200)
    with pytest.raises(HfHubHTTPError, match="was not uploaded"):
        HfApi().upload_folder(repo_id=REPO, folder_path=folder)


def test_an_upload_with_another_content_is_refused(hub):
    HfApi().create_repo(REPO)
    response = get_session().put(hub.url + upload_path("model.safetensors"), content=b"other")
    assert response.status_code == 400 and not hub.repositories[REPO].objects


def test_a_commit_on_top_of_another_than_the_last_is_refused(pushed):
    new = {"path_or_fileobj": b"", "path_in_repo": "new", "repo_id": REPO, "parent_commit": pushed}
    HfApi().upload_file(**new)
    with pytest.raises(HfHubHTTPError, match="412"):
        HfApi().upload_file(**new | {"path_in_repo": "newer"})


# Failures


def test_an_upload_cut_in_the_middle_raises_and_a_second_sends_only_what_is_missing(hub, folder):
    HfApi().create_repo(REPO)
    hub.cut("PUT", upload_path("model.safetensors"), after_bytes=1000, times=math.inf)
    with pytest.raises(RuntimeError, match=r"Error while uploading 'model\.safetensors'"):
        HfApi().upload_folder(repo_id=REPO, folder_path=folder)
    assert not hub.requested("POST", "/commit/")

    hub.faults.clear()
    hub.requests.clear()
    HfApi().upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.requested("PUT") == [upload_path("model.safetensors")]
    assert contents(snapshot_download(REPO)) == FILES


def test_the_client_repeats_an_upload_that_failed_once(hub, folder):
    HfApi().create_repo(REPO)
    hub.fail("PUT", "/lfs/", skip=1)
    HfApi().upload_folder(repo_id=REPO, folder_path=folder)
    assert len(hub.requested("PUT")) == 3
    assert contents(snapshot_download(REPO)) == FILES


def test_a_failed_commit_leaves_the_branch_as_it_was(hub, pushed):
    hub.fail("POST", "/commit/", status=503)
    with pytest.raises(HfHubHTTPError, match="503"):
        HfApi().upload_file(path_or_fileobj=b"", path_in_repo="new", repo_id=REPO)
    assert HfApi().model_info(REPO).sha == pushed


def test_a_download_cut_in_the_middle_goes_on_where_it_stopped(hub, pushed):
    hub.cut("GET", "/resolve/.*model", after_bytes=1000)
    assert Path(hf_hub_download(REPO, "model.safetensors")).read_bytes() == FILES["model.safetensors"]
    assert len(hub.requested("GET", "/resolve/")) == 2


def test_a_failed_download_leaves_no_file_behind(hub, pushed):
    hub.fail("GET", "/resolve/.*model")
    with pytest.raises(HfHubHTTPError):
        hf_hub_download(REPO, "model.safetensors")
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(REPO, "model.safetensors", local_files_only=True)


# Libraries


def test_a_model_of_transformers_comes_back_bit_for_bit(hub, tiny_model, tiny_tokenizer):
    model = tiny_model()
    model.push_to_hub(REPO)
    tiny_tokenizer.push_to_hub(REPO)
    loaded = AutoModelForCausalLM.from_pretrained(REPO)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(REPO).get_vocab() == tiny_tokenizer.get_vocab()


def test_a_model_pushed_to_a_branch_is_loaded_from_it(hub, tiny_model):
    tiny_model(seed=0).push_to_hub(REPO)
    tiny_model(seed=1).push_to_hub(REPO, revision="other")
    loaded = AutoModelForCausalLM.from_pretrained(REPO, revision="other")
    assert torch.equal(loaded.lm_head.weight, tiny_model(seed=1).lm_head.weight)


def test_an_adapter_of_peft_comes_back_bit_for_bit(hub, tiny_model):
    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.push_to_hub("user/adapter")
    loaded = PeftModel.from_pretrained(tiny_model(), "user/adapter")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in adapted.state_dict().items())


class Named(ModelHubMixin):
    """Something that a file holds."""

    def __init__(self, name: str):
        self.name = name

    def _save_pretrained(self, save_directory: Path) -> None:
        (save_directory / "name.json").write_text(json.dumps(self.name))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, revision: str | None, **_) -> "Named":
        return cls(json.loads(Path(hf_hub_download(model_id, "name.json", revision=revision)).read_text()))


def test_a_mixin_of_the_hub_is_pushed_and_loaded(hub):
    Named("Ada").push_to_hub(REPO)
    assert Named.from_pretrained(REPO).name == "Ada"


@pytest.mark.skipif(
    "https://huggingface.co" in inspect.getsource(ModelCard.validate),
    reason="this huggingface_hub has cards validated by the real Hub, whatever its endpoint",
)
def test_a_card_is_validated_pushed_and_loaded(hub):
    HfApi().create_repo(REPO)
    ModelCard(CARD).push_to_hub(REPO)
    assert str(ModelCard.load(REPO)) == CARD
    with pytest.raises(ValueError, match="mapping"):
        HfApi().upload_file(path_or_fileobj=b"---\n- 1\n---\n", path_in_repo="README.md", repo_id=REPO)


# The fixture


def test_another_process_uses_the_hub_by_its_environment(hub, pushed):
    code = f"from huggingface_hub import HfApi; print(HfApi().model_info({REPO!r}).sha)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **hub.environment}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == pushed


def test_the_client_is_offline_where_the_fixture_is_not_used():
    assert constants.ENDPOINT == "https://huggingface.co" == HfApi().endpoint == huggingface_hub.hf_api.api.endpoint
    with pytest.raises(OfflineModeIsEnabled):
        HfApi().model_info(REPO)
