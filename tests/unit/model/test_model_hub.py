"""Names become folders: local ones as they are, hub names through a stand-in for the hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from tiny_models import make_checkpoint

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.hub import resolve
from sglite.runtime.model.loader import load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"


class HubStandIn(ThreadingHTTPServer):
    """Serves one repository, ``org/tiny``, as the hub does: revisions, file lists, files with ranges, and refusals."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = files
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path and Range header of everything asked for."""
        self.needs_token = False
        self.forbidden: set[str] = set()
        """Files that nobody may read."""
        self.breaks_off: set[str] = set()
        """Files whose next download stops in the middle."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def downloaded(self) -> list[str]:
        """Names of the files that were fetched, in order."""
        return [path.rsplit("/", 1)[1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


class HubHandler(BaseHTTPRequestHandler):
    """One request of the hub's client."""

    protocol_version = "HTTP/1.1"
    server: HubStandIn

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        owner, name, rest = path.removeprefix("/api/models").removeprefix("/").split("/", 2)
        repository = f"{owner}/{name}"
        if repository != "org/tiny":
            self.refuse(404, "RepoNotFound")
        elif self.server.needs_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        elif rest.split("/")[1] not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        elif rest.startswith("revision/"):
            self.send_json({"id": repository, "sha": COMMIT, "siblings": [{"rfilename": f} for f in self.server.files]})
        elif rest.startswith("tree/"):
            self.send_json([self.entry(name) for name in self.server.files])
        else:
            self.send_file(rest.split("/", 2)[2])

    def entry(self, name: str) -> dict[str, Any]:
        data = self.server.files[name]
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.begin(200, len(body), {"Content-Type": "application/json"})
        self.wfile.write(body)

    def send_file(self, name: str) -> None:
        if name in self.server.forbidden:
            self.refuse(403, "Forbidden")
            return
        data = self.server.files[name]
        headers = {"ETag": f'"{self.entry(name)["oid"]}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self.begin(206 if first else 200, len(data) - first, headers)
        if self.command == "HEAD":
            return
        if name in self.server.breaks_off:
            self.server.breaks_off.remove(name)
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data[first:])

    def refuse(self, status: int, code: str) -> None:
        self.begin(status, 0, {"X-Error-Code": code, "X-Error-Message": code})

    def begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = make_checkpoint(tmp_path_factory.mktemp("hub"), shards=2)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    unwanted = ("pytorch_model.bin", "modeling_tiny.py", "onnx/config.json", "consolidated.safetensors", "README.md")
    return {**files, **dict.fromkeys(unwanted, b"unwanted")}


@pytest.fixture
def hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    server = HubStandIn(files)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def refusal(name: str, **arguments: Any) -> str:
    with pytest.raises(ModelError) as error:
        resolve(name, **arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_existing_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(tmp_path) == resolve(str(tmp_path)) == tmp_path
    assert "revisions exist on the hub only" in refusal(str(tmp_path), revision="main")


def test_a_home_relative_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve("~/model") == tmp_path / "model"


@pytest.mark.parametrize("name", ["./absent", "absent", "/absent/model", "a/b/c", "../up/there", "a/b\nc", ""])
def test_what_is_neither_folder_nor_hub_name_is_refused(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert "is neither an existing folder nor a hub name such as" in refusal(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert "is a file; give the folder" in refusal(str(tmp_path / "model.safetensors"))


def test_a_repository_is_fetched_once_and_only_what_a_model_needs(hub: HubStandIn, tmp_path: Path) -> None:
    folder = resolve("org/tiny", cache_dir=tmp_path, endpoint=hub.endpoint)
    wanted = {name for name in hub.files if hub.files[name] != b"unwanted"}
    assert sorted(hub.downloaded()) == sorted(wanted) == sorted(path.name for path in folder.iterdir())
    assert all((folder / name).read_bytes() == hub.files[name] for name in wanted)
    assert load_model(folder, backend=CPUBackend()).vocab_size == 384
    hub.requests.clear()
    assert resolve("org/tiny", cache_dir=tmp_path, endpoint=hub.endpoint) == folder
    assert hub.downloaded() == []
    hub.requests.clear()
    assert resolve("org/tiny", cache_dir=tmp_path, endpoint=hub.endpoint, offline=True) == folder
    assert hub.requests == []


def test_a_commit_is_a_revision(hub: HubStandIn, tmp_path: Path) -> None:
    assert resolve("org/tiny", COMMIT, cache_dir=tmp_path, endpoint=hub.endpoint).name == COMMIT


def test_a_download_that_breaks_off_goes_on_where_it_stopped(
    hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    shard = "model-00001-of-00002.safetensors"
    hub.breaks_off = {shard}
    folder = resolve("org/tiny", cache_dir=tmp_path, endpoint=hub.endpoint)
    assert (folder / shard).read_bytes() == hub.files[shard]
    ranges = [asked for method, path, asked in hub.requests if method == "GET" and path.endswith(shard)]
    assert len(ranges) == 2 and ranges[0] is None
    assert ranges[1] is not None and int(ranges[1].removeprefix("bytes=").rstrip("-")) > len(hub.files[shard]) // 4


def test_what_was_fetched_before_a_failure_is_kept(hub: HubStandIn, tmp_path: Path) -> None:
    last = "model-00002-of-00002.safetensors"
    hub.forbidden = {last}
    message = refusal("org/tiny", cache_dir=tmp_path, endpoint=hub.endpoint)
    assert "the hub refused org/tiny (" in message and "check the token's permissions or try again" in message
    message = refusal("org/tiny", cache_dir=tmp_path, endpoint=hub.endpoint, offline=True)
    assert "org/tiny is not complete in the cache; run once without offline" in message
    kept = set(hub.downloaded()) - {last}
    assert kept
    hub.forbidden.clear()
    hub.requests.clear()
    resolve("org/tiny", cache_dir=tmp_path, endpoint=hub.endpoint)
    assert last in hub.downloaded() and kept.isdisjoint(hub.downloaded())


def test_gated_repositories_say_what_to_do_and_open_with_a_token(hub: HubStandIn, tmp_path: Path) -> None:
    hub.needs_token = True
    for token in (None, "hf_wrong"):
        message = refusal("org/tiny", cache_dir=tmp_path, endpoint=hub.endpoint, token=token)
        assert "org/tiny is gated: accept its conditions on its hub page" in message
        assert "hf_wrong" not in message
    assert resolve("org/tiny", cache_dir=tmp_path, endpoint=hub.endpoint, token=TOKEN).is_dir()


def test_missing_repositories_and_revisions_are_named(hub: HubStandIn, tmp_path: Path) -> None:
    message = refusal("org/absent", cache_dir=tmp_path, endpoint=hub.endpoint)
    assert "org/absent does not exist on the hub or is private" in message
    message = refusal("org/tiny", revision="v9", cache_dir=tmp_path, endpoint=hub.endpoint)
    assert "org/tiny has no revision 'v9'" in message


def test_a_hub_out_of_reach_is_said_and_the_cache_used_where_it_can(hub: HubStandIn, tmp_path: Path) -> None:
    folder = resolve("org/tiny", cache_dir=tmp_path / "full", endpoint=hub.endpoint)
    dead = "http://127.0.0.1:9"
    assert resolve("org/tiny", cache_dir=tmp_path / "full", endpoint=dead) == folder
    message = refusal("org/tiny", cache_dir=tmp_path / "empty", endpoint=dead)
    assert "is not complete in the cache and the hub cannot be reached" in message
    message = refusal("org/tiny", cache_dir=tmp_path / "empty", offline=True)
    assert "org/tiny is not complete in the cache; run once without offline to download it" in message


def test_the_endpoint_of_the_environment_is_honoured(hub: HubStandIn, tmp_path: Path) -> None:
    program = f"from sglite.runtime.model.hub import resolve; print(resolve('org/tiny', cache_dir={str(tmp_path)!r}))"
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert (Path(done.stdout.strip()) / "config.json").read_bytes() == hub.files["config.json"]


def test_an_endpoint_must_be_a_url() -> None:
    assert "endpoint='hub.example' is not a URL" in refusal("org/tiny", endpoint="hub.example")
