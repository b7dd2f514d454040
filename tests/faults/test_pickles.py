"""Nothing that arrives is ever carried out: no code of ours can do it, and payloads that would leave no trace."""

from __future__ import annotations

import ast
import asyncio
import base64
import builtins
import io
import json
import marshal
import os
import pickle
import shelve
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.scale import figure
from faults.servers import Server
from faults.wire import Connection

import sglite

ATTACK = "pickles"
_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
_NAMES = {"eval", "exec", "compile", "__import__"}
_CALLS = {("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("numpy", "load")}


def dangerous(source: str) -> list[str]:
    """What in a module could carry out what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.partition(".")[0] in _MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in _MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            found += _called(node.func)
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell") and _is_true(node.value):
            found.append(str(node.arg))
    return found


def _called(function: ast.expr) -> list[str]:
    if isinstance(function, ast.Name) and function.id in _NAMES:
        return [function.id]
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        pair = ({"np": "numpy"}.get(function.value.id, function.value.id), function.attr)
        return [".".join(pair)] if pair in _CALLS or pair == ("os", "system") else []
    return []


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def test_the_search_finds_what_it_is_for() -> None:
    bad = ("import pickle", "from marshal import loads", "eval('1')", "torch.load(f)", "yaml.load(f)", "os.system(f)")
    assert all(dangerous(line) for line in bad)
    assert not dangerous("re.compile('a'); model.eval(); yaml.safe_load(f); safetensors.torch.load_file(f)")


def test_no_module_can_carry_out_what_it_reads() -> None:
    root = Path(sglite.__file__).parent
    found = {str(path.relative_to(root)): dangerous(path.read_text()) for path in sorted(root.rglob("*.py"))}
    figure(ATTACK, "modules searched", len(found))
    assert {path: names for path, names in found.items() if names} == {}


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path, how: Any) -> None:
        self._path, self._how = path, how

    def __reduce__(self) -> Any:
        return self._how, (f"touch {self._path}",) if self._how is os.system else (f"open({str(self._path)!r}, 'w')",)


def payloads(trace: Path, folder: Path) -> dict[str, bytes]:
    """Twenty and more, each of which would leave ``trace``."""
    call = Touch(trace, os.system)
    found = {f"protocol {p}, {how.__name__}": pickle.dumps(Touch(trace, how), p)
             for p in range(pickle.HIGHEST_PROTOCOL + 1) for how in (os.system, builtins.eval)}  # fmt: skip
    found["by hand"] = b"cos\nsystem\n(S'touch " + str(trace).encode() + b"'\ntR."
    found["in a list"] = pickle.dumps([1, {"a": call}])
    found["in base64"] = base64.b64encode(pickle.dumps(call))
    found["marshal"] = marshal.dumps(compile(f"open({str(trace)!r}, 'w')", "x", "exec"))
    found["yaml"] = f"!!python/object/apply:os.system ['touch {trace}']".encode()
    with shelve.open(str(folder / "shelf")) as shelf:
        shelf["a"] = [1]
    found["python"] = f"__import__('os').system('touch {trace}')".encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:  # what torch.save writes
        made.writestr("archive/data.pkl", pickle.dumps(call))
        made.writestr("archive/version", "3")
    found["torch"] = archive.getvalue()
    found["numpy"] = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}" + pickle.dumps(
        [call]
    )
    found["template"] = b"{{ ''.__class__.__mro__[1].__subclasses__() }}"
    return found


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Every door that a key opens is open."""
    server = Server(folder, "--context-length", "256", "--admin-key", "k", watch=False)
    yield server
    server.close()


def test_payloads_leave_no_trace(server: Server, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    sent = payloads(trace, tmp_path)
    assert len(sent) >= 20
    found = server.http.get("/openapi.json").json()["paths"]
    paths = [path.replace("{name}", "x").replace("{digest}", "sha256:00") for path in found if "post" in found[path]]
    inside = {
        "/update_weights_from_tensor": "serialized_named_tensors", "/load_lora_adapter": "lora_path",
        "/generate": "input_embeds", "/v1/completions": "prompt_embeds", "/set_internal_state": "server_args",
        "/v1/chat/completions": "chat_template", "/api/create": "files", "/update_weights_from_ipc": "zmq_handles",
    }  # fmt: skip
    kinds = ("application/octet-stream", "application/x-pickle", "application/json", "application/x-msgpack")

    async def attack() -> dict[str, int]:
        statuses = {}
        connection = Connection(server.port)
        for name, data in sent.items():
            for number, path in enumerate(paths):
                headers = [("Content-Type", kinds[number % len(kinds)]), ("x-api-key", "k")]
                statuses[f"{name} to {path}"] = (await connection.call("POST", path, data, headers=headers)).status
            for path, field in inside.items():
                text = base64.b64encode(data).decode()
                for value in (text, [text]):
                    body = json.dumps({field: value, "text": "x", "prompt": "x", "messages": []}).encode()
                    headers = [("Content-Type", "application/json"), ("x-api-key", "k")]
                    reply = await connection.call("POST", path, body, headers=headers)
                    statuses[f"{name} in {path}.{field} {type(value)}"] = reply.status
        connection.close()
        return statuses

    statuses = asyncio.run(attack())
    figure(ATTACK, "payloads, requests, traces", f"{len(sent)}, {len(statuses)}, {int(trace.exists())}")
    assert not trace.exists()
    # What opens or asks for nothing takes no body, and so does not mind one.
    mindless = {"/ping", "/flush_cache", "/continue_generation"}
    wrong = {name: status for name, status in statuses.items()
             if not (400 <= status < 500 or status == 501) and name.rpartition(" to ")[2] not in mindless}  # fmt: skip
    assert not wrong, dict(list(wrong.items())[:10])
