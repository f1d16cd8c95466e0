"""
A Hub on this machine, for tests of what the real `huggingface_hub` client pushes and loads.

It speaks the part of the HTTP interface that models need: repositories, branches, commits, LFS without Xet, downloads.
"""

import base64
import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from huggingface_hub import close_session, constants, file_download, hf_api
from huggingface_hub.utils import _cache_manager, _http, disable_progress_bars, enable_progress_bars
from transformers.utils import hub as transformers_hub

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.npz", "*.parquet", "*.zip", "*.png")
LARGEST_REGULAR_FILE = 10 * 2**20

# Requests and answers


@dataclass
class Request:
    method: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes

    def json(self):
        return json.loads(self.body)

    def is_set(self, option: str) -> bool:
        return self.query.get(option, ["false"])[0].lower() in ("true", "1")


@dataclass
class Response:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @classmethod
    def of(cls, data, status: int = 200, headers: dict[str, str] | None = None) -> "Response":
        """Answer in JSON."""
        body = json.dumps(data, default=str).encode()
        return cls(status, {"Content-Type": "application/json"} | (headers or {}), body)


class Refused(Exception):
    """An answer other than success; the client turns `code` into its own error classes."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        codes = {} if code is None else {"X-Error-Code": code}
        self.response = Response.of({"error": message}, status, {"X-Error-Message": message} | codes | (headers or {}))


# Storage


@dataclass(frozen=True)
class Blob:
    """Content of a file, as a commit holds it."""

    content: bytes
    is_lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def stored(self) -> bytes:
        """What Git holds: for LFS, a pointer to the object."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return pointer.encode() if self.is_lfs else self.content

    @cached_property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.stored) + self.stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid

    def entry(self, path: str) -> dict:
        """The file in a listing of the tree."""
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        lfs = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.stored)}
        return entry | {"lfs": lfs} if self.is_lfs else entry


GITATTRIBUTES = Blob("".join(f"{name} filter=lfs diff=lfs merge=lfs -text\n" for name in LFS_PATTERNS).encode(), False)


@dataclass
class Repository:
    """Branches with their commits, oldest first, the files of each commit, and the uploaded LFS objects by SHA-256."""

    id: str
    private: bool
    branches: dict[str, list[str]] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self):
        self.branches["main"] = []
        self.add_commit("main", {".gitattributes": GITATTRIBUTES}, "initial commit")

    def add_commit(self, branch: str, files: dict[str, Blob], message: str) -> str:
        history = self.branches[branch]
        tree = {path: blob.oid for path, blob in files.items()}
        sha = hashlib.sha1(json.dumps([history, message, tree]).encode()).hexdigest()
        self.commits[sha] = files
        history.append(sha)
        return sha

    def resolve(self, revision: str) -> str:
        """Full SHA of the commit that a branch or a SHA names."""
        if revision in self.branches:
            return self.branches[revision][-1]
        if revision in self.commits:
            return revision
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def files(self, revision: str) -> dict[str, Blob]:
        return self.commits[self.resolve(revision)]

    def apply(self, branch: str, header: dict, operations: list[dict]) -> str:
        """Commit of the operations of the client on top of a branch."""
        if branch not in self.branches:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if header.get("parentCommit", self.resolve(branch)) != self.resolve(branch):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(self.files(branch))
        for operation in operations:
            self.change(files, operation["key"], operation["value"])
        return self.add_commit(branch, files, header["summary"])

    def change(self, files: dict[str, Blob], key: str, value: dict) -> None:
        path = value["path"]
        match key:
            case "file":
                files[path] = Blob(base64.b64decode(value["content"]), is_lfs=False)
            case "lfsFile":
                files[path] = Blob(self.uploaded(value["oid"], value["size"]), is_lfs=True)
            case "deletedFile" if path in files:
                del files[path]
            case "deletedFolder":
                for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                    del files[name]
            case _:
                raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")

    def uploaded(self, oid: str, size: int) -> bytes:
        content = self.objects.get(oid)
        if content is None or len(content) != size:
            raise Refused(400, f"LFS object {oid} of {size} bytes was not uploaded")
        return content


def tree(files: dict[str, Blob], folder: str, recursive: bool) -> list[dict]:
    """Folders and files below a folder."""
    prefix = folder and folder + "/"
    inside = {path: blob for path, blob in files.items() if path.startswith(prefix)}
    folders = {str(parent) for path in inside for parent in PurePosixPath(path).parents} - {"."}
    entries = [
        {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
        for path in sorted(folders)
        if path.startswith(prefix)
    ] + [blob.entry(path) for path, blob in sorted(inside.items())]
    return [entry for entry in entries if recursive or "/" not in entry["path"][len(prefix) :]]


def metadata(card: str) -> dict:
    """What a card says in YAML; `ValueError` if it is not a mapping."""
    block = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(?:\n|$)", card, re.DOTALL)
    try:
        values = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(values, dict):
        raise ValueError("Metadata must be a mapping")
    return values


# Routes

ROUTES: list[tuple[str, re.Pattern, Callable[..., Response]]] = []
REPO, REVISION, REST = r"(?P<repo>[^/]+(?:/[^/]+)?)", r"(?P<revision>[^/]+)", r"(?P<path>.+)"
LEFT_OUT = {"revision": "main", "path": ""}


def route(method: str, pattern: str):
    def register(function: Callable[..., Response]) -> Callable[..., Response]:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


@route("GET", "/api/whoami-v2")
def whoami(hub: "Hub", request: Request) -> Response:
    if not hub.signed_in(request):
        raise Refused(401, "Invalid username or password.")
    access = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
    return Response.of({"type": "user", "id": "0", "name": hub.user, "fullname": hub.user, "orgs": [], "auth": access})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: "Hub", request: Request) -> Response:
    try:
        values = metadata(request.json()["content"])
    except ValueError as error:
        return Response.of({"errors": [{"message": str(error)}], "warnings": []}, 400)
    warnings = [] if values else [{"message": "empty or missing yaml metadata in repo card"}]
    return Response.of({"errors": [], "warnings": warnings})


@route("POST", "/api/repos/create")
def create_repo(hub: "Hub", request: Request) -> Response:
    asked = request.json()
    owner = asked.get("organization") or hub.user
    repo = f"{owner}/{asked['name']}"
    if not hub.signed_in(request):
        raise Refused(401, "Invalid username or password.")
    if owner != hub.user or asked.get("type", "model") != "model":
        raise Refused(403, f"You don't have the rights to create {repo}")
    url = {"url": f"{hub.url}/{repo}", "name": repo}
    if repo in hub.repositories:
        return Response.of({"error": "You already created this model repo"} | url, 409)
    hub.repositories[repo] = Repository(repo, private=asked.get("private") or asked.get("visibility") == "private")
    return Response.of(url)


@route("POST", f"/api/models/{REPO}/branch/(?P<branch>[^/]+)")
def create_branch(hub: "Hub", request: Request, repo: str, branch: str) -> Response:
    repository = hub.repository(request, repo, write=True)
    if branch in repository.branches:
        raise Refused(409, f"Reference already exists: {branch}")
    start = repository.resolve(request.json().get("startingPoint", "main"))
    history = next(history for history in repository.branches.values() if start in history)
    repository.branches[branch] = history[: history.index(start) + 1]
    return Response.of({})


@route("GET", f"/api/models/{REPO}(?:/revision/{REVISION})?")
def model_info(hub: "Hub", request: Request, repo: str, revision: str) -> Response:
    repository = hub.repository(request, repo)
    files = repository.files(revision)
    card = metadata(files["README.md"].content.decode()) if "README.md" in files else {}
    facts = {"id": repo, "modelId": repo, "author": hub.user, "private": repository.private, "gated": False}
    tags = {"tags": card.get("tags", []), "cardData": card}
    labels = {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
    siblings = [sibling(path, blob, request.is_set("blobs")) for path, blob in sorted(files.items())]
    return Response.of(facts | tags | labels | {"sha": repository.resolve(revision), "siblings": siblings})


def sibling(path: str, blob: Blob, detailed: bool) -> dict:
    if not detailed:
        return {"rfilename": path}
    entry = blob.entry(path)
    lfs = {"lfs": entry["lfs"] | {"sha256": blob.sha256}} if blob.is_lfs else {}
    return {"rfilename": path, "size": entry["size"], "blobId": blob.oid} | lfs


@route("GET", f"/api/models/{REPO}/tree/{REVISION}(?:/{REST})?")
def list_tree(hub: "Hub", request: Request, repo: str, revision: str, path: str) -> Response:
    entries = tree(hub.repository(request, repo).files(revision), path, request.is_set("recursive"))
    if path and not entries:
        raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
    return Response.of(entries)


@route("POST", f"/api/models/{REPO}/paths-info/{REVISION}")
def paths_info(hub: "Hub", request: Request, repo: str, revision: str) -> Response:
    paths = parse_qs(request.body.decode()).get("paths", [])
    entries = tree(hub.repository(request, repo).files(revision), "", recursive=True)
    return Response.of([entry for entry in entries if entry["path"] in paths])


@route("POST", f"/api/models/{REPO}/preupload/{REVISION}")
def preupload(hub: "Hub", request: Request, repo: str, revision: str) -> Response:
    present = hub.repository(request, repo, write=True).files(revision)
    files = [
        {
            "path": (path := file["path"]),
            "uploadMode": "lfs" if is_lfs(path, file["size"]) else "regular",
            "shouldIgnore": False,
            "oid": present[path].etag if path in present else None,
        }
        for file in request.json()["files"]
    ]
    return Response.of({"files": files})


def is_lfs(path: str, size: int) -> bool:
    name = PurePosixPath(path).name
    return size > LARGEST_REGULAR_FILE or any(fnmatch.fnmatch(name, pattern) for pattern in LFS_PATTERNS)


@route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
def lfs_batch(hub: "Hub", request: Request, repo: str) -> Response:
    repository = hub.repository(request, repo, write=True)
    objects = request.json()["objects"]
    for file in objects:
        if file["oid"] not in repository.objects:
            upload, verify = f"{hub.url}/lfs/{file['oid']}/{repo}", f"{hub.url}/{repo}.git/info/lfs/verify"
            file["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
    return Response.of({"transfer": "basic", "objects": objects})


@route("PUT", f"/lfs/(?P<oid>[0-9a-f]{{64}})/{REPO}")
def lfs_upload(hub: "Hub", request: Request, oid: str, repo: str) -> Response:
    # Without a look at the token: the client sends none to the storage, whose addresses are signed.
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refused(400, f"The content uploaded is not that of {oid}")
    hub.repositories[repo].objects[oid] = request.body
    return Response()


@route("POST", rf"/{REPO}\.git/info/lfs/verify")
def lfs_verify(hub: "Hub", request: Request, repo: str) -> Response:
    hub.repository(request, repo, write=True).uploaded(**request.json())
    return Response.of({})


@route("POST", f"/api/models/{REPO}/commit/{REVISION}")
def commit(hub: "Hub", request: Request, repo: str, revision: str) -> Response:
    repository = hub.repository(request, repo, write=True)
    if request.is_set("create_pr"):
        raise Refused(403, "Pull requests are disabled")
    header, *operations = [json.loads(line) for line in request.body.splitlines()]
    sha = repository.apply(revision, header["value"], operations)
    return Response.of({"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{repo}/commit/{sha}"})


@route("GET", f"/{REPO}/resolve/{REVISION}/{REST}")
def resolve(hub: "Hub", request: Request, repo: str, revision: str, path: str) -> Response:
    repository = hub.repository(request, repo)
    headers = {"X-Repo-Commit": repository.resolve(revision)}
    blob = repository.files(revision).get(path)
    if blob is None:
        raise Refused(404, "Entry not found", "EntryNotFound", headers)
    headers |= {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    if blob.is_lfs:
        headers |= {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
    return part(blob.content, headers, request.headers.get("Range", ""))


def part(content: bytes, headers: dict[str, str], asked: str) -> Response:
    """The range of a file that was asked for, or all of it."""
    bounds = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
    if bounds is None:
        return Response(200, headers, content)
    start, end = int(bounds[1]), min(int(bounds[2] or len(content)) + 1, len(content))
    if start >= end:
        return Response(416, headers | {"Content-Range": f"bytes */{len(content)}"})
    return Response(206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}, content[start:end])


# Server


@dataclass
class Fault:
    """What goes wrong with requests: the answer is an error, or the connection drops after some bytes."""

    method: str
    pattern: str
    times: float
    skip: int
    status: int | None = None
    after_bytes: int | None = None

    def strikes(self, method: str, path: str) -> bool:
        if self.method != method or not re.search(self.pattern, path) or self.times <= 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class Hub:
    """
    Repositories in memory behind an HTTP server: `with Hub(home) as hub`.

    `requests` has the method and the path of every request, as sent. A path of an LFS upload is `/lfs/<sha256>/<repo>`.
    """

    user = "user"
    token = "hf_local"

    def __init__(self, home: Path):
        self.home = home
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> "Hub":
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which another process uses this Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(self.home),
            "HF_HUB_CACHE": str(self.home / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "no_proxy": "127.0.0.1",
        }

    def fail(self, method: str, pattern: str, times: float = 1, skip: int = 0, status: int = 500) -> None:
        """Answers `times` requests that match with an error, after the first `skip` of them."""
        self.faults.append(Fault(method, pattern, times, skip, status=status))

    def cut(self, method: str, pattern: str, after_bytes: int, times: float = 1, skip: int = 0) -> None:
        """Drops the connection `after_bytes` into the body of an upload, or into that of a download."""
        self.faults.append(Fault(method, pattern, times, skip, after_bytes=after_bytes))

    def requested(self, method: str, pattern: str = "") -> list[str]:
        """Paths of the requests that match."""
        return [path for verb, path in self.requests if verb == method and re.search(pattern, path)]

    def begin(self, method: str, path: str) -> Fault | None:
        """Logs a request; returns what is to go wrong with it."""
        with self.lock:
            self.requests.append((method, path))
            return next((fault for fault in self.faults if fault.strikes(method, path)), None)

    def respond(self, path: str, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        try:
            for verb, pattern, function in ROUTES:
                if verb == method and (found := pattern.fullmatch(path)):
                    groups = {name: unquote(text or LEFT_OUT[name]) for name, text in found.groupdict().items()}
                    with self.lock:
                        return function(self, request, **groups)
            raise Refused(404, f"The Hub of the tests does not serve {method} {path}")
        except Refused as refusal:
            return refusal.response

    def signed_in(self, request: Request) -> bool:
        sent = request.headers.get("Authorization")
        if sent not in (None, f"Bearer {self.token}"):
            raise Refused(401, "Invalid credentials in Authorization header")
        return sent is not None

    def repository(self, request: Request, repo: str, write: bool = False) -> Repository:
        """The repository, if the sender may read it or write to it."""
        signed_in, repository = self.signed_in(request), self.repositories.get(repo)
        if repository is None or (repository.private and not signed_in):
            # With its code: the client takes a bare 401 for a missing repository over https only.
            raise Refused(404 if signed_in else 401, "Repository not found", "RepoNotFound")
        if write and not signed_in:
            raise Refused(401, "Invalid username or password.")
        return repository


class Handler(BaseHTTPRequestHandler):
    """Reads requests from a connection and writes the answers of the Hub, or fails as told."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        hub, url, length = self.server.hub, urlsplit(self.path), int(self.headers.get("Content-Length", 0))
        fault = hub.begin(self.command, url.path)
        if fault and fault.after_bytes is not None and length:
            self.rfile.read(min(fault.after_bytes, length))
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if fault and fault.status:
            response = Response.of({"error": "Failure asked for by the test"}, fault.status)
        else:
            response = hub.respond(url.path, Request(self.command, parse_qs(url.query), self.headers, body))
        self.write(response, None if fault is None else fault.after_bytes)

    do_HEAD = do_POST = do_PUT = do_GET

    def write(self, response: Response, limit: int | None) -> None:
        """Sends an answer; closes the connection after `limit` bytes of the body."""
        self.send_response(response.status)
        for name, value in (response.headers | {"Content-Length": str(len(response.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body[:limit])
        self.close_connection = self.close_connection or limit is not None

    def log_message(self, *_) -> None:
        pass


# Client


@contextmanager
def connected(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the client of this process use a Hub, with a cache of its own and without waits between its retries."""
    for name, value in hub.environment.items():
        monkeypatch.setenv(name, value)
    values = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(hub.home),
        "HF_HUB_CACHE": str(hub.home / "hub"),
        "HF_TOKEN_PATH": str(hub.home / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    # Copies of the above that the client and transformers made when they were imported or first used.
    monkeypatch.setattr(_cache_manager, "HF_HUB_CACHE", values["HF_HUB_CACHE"])
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    monkeypatch.setattr(transformers_hub, "_hf_api", None)
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None))
    close_session()
    disable_progress_bars()  # a context manager only in newer versions
    try:
        yield
    finally:
        enable_progress_bars()
        close_session()
