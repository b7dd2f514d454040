"""Weights over HTTP: SGLang's answers, who may ask, what is refused, and what requests see of a change."""

from __future__ import annotations

import base64
import json
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save
from served import start
from tiny_engines import tiny_engine
from tiny_models import make_checkpoint

from sglite import Engine

ADMIN = {"Authorization": "Bearer boss"}
GREEDY = {"temperature": 0.0, "max_new_tokens": 6, "ignore_eos": True}
PROMPT = [20, 30, 40, 50, 60, 70, 80]
ROUTES = {
    "/update_weights_from_disk": {"model_path": "/nothing"},
    "/update_weights_from_tensor": {"serialized_named_tensors": [""]},
    "/update_weight_version": {"new_version": "stolen"},
    "/get_weights_by_name": {"name": "model.norm.weight"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("weights")
    return make_checkpoint(root / "one", seed=1), make_checkpoint(root / "two", seed=2)


@pytest.fixture(scope="module")
def engine(folders: tuple[Path, Path]) -> Iterator[Engine]:
    with tiny_engine(folders[0]) as engine:
        yield engine


@pytest.fixture(scope="module")
def http(engine: Engine) -> Iterator[httpx.Client]:
    server, url, thread = start(engine, api_key="user", admin_key="boss")
    with httpx.Client(base_url=url, timeout=60, headers=ADMIN) as http:
        yield http
    server.should_exit = True
    thread.join(10)


@pytest.fixture(autouse=True)
def as_before(engine: Engine, folders: tuple[Path, Path]) -> Iterator[None]:
    yield
    if engine.weights.path != str(folders[0]) or engine.weights.version.name != "default":
        assert engine.update_weights_from_disk(str(folders[0]))[0]
        engine.weights.rename("default")
        engine.weights.path = str(folders[0])


def text_of(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [base64.b64encode(save(tensors)).decode()]


def generate(http: httpx.Client, **fields: Any) -> Any:
    answer = http.post("/generate", json={"input_ids": PROMPT, "sampling_params": GREEDY, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_other_weights_from_a_folder(http: httpx.Client, folders: tuple[Path, Path]) -> None:
    before = generate(http)
    assert before["meta_info"]["weight_version"] == http.get("/model_info").json()["weight_version"] == "default"
    body = {"model_path": str(folders[1]), "load_format": None, "weight_version": "step 7", "token_step": 7}
    answer = http.post("/update_weights_from_disk", json={**body, "recapture_cuda_graph": True, "is_async": False})
    assert answer.status_code == 200 and answer.headers["x-sglite-ignored"] == "recapture_cuda_graph, token_step"
    said = answer.json()
    assert said.keys() == {"success", "message", "num_paused_requests"} and said["success"] is True
    assert "step 7" in said["message"] and said["num_paused_requests"] == 0
    after = generate(http)
    assert after["output_ids"] != before["output_ids"] and after["meta_info"]["cached_tokens"] == 0
    assert after["meta_info"]["weight_version"] == "step 7"
    info, server = http.get("/get_model_info").json(), http.get("/server_info").json()
    assert (info["model_path"], info["weight_version"]) == (str(folders[1]), "step 7")
    assert (server["weights_path"], server["weight_version"]) == (str(folders[1]), "step 7")
    assert info["tokenizer_path"] == server["model_path"] == str(folders[0])


def test_a_checkpoint_that_does_not_fit_is_a_400_that_changes_nothing(http: httpx.Client, tmp_path: Path) -> None:
    bad = make_checkpoint(tmp_path / "bad", num_hidden_layers=1)
    (bad / "config.json").unlink()
    before = generate(http)["output_ids"]
    answer = http.post("/update_weights_from_disk", json={"model_path": str(bad), "weight_version": "x"})
    said = answer.json()
    assert answer.status_code == 400 and said["success"] is False and said["num_paused_requests"] == 0
    assert "model.layers.1.mlp.down_proj.weight" in said["message"]
    assert said["error"]["code"] == "weights_refused" and said["message"].startswith(said["error"]["message"])
    after = generate(http)
    assert after["output_ids"] == before and after["meta_info"]["weight_version"] == "default"
    assert after["meta_info"]["cached_tokens"] > 0


def test_tensors_come_as_safetensors(http: httpx.Client, engine: Engine, folders: tuple[Path, Path]) -> None:
    other = load_file(folders[1] / "model.safetensors")
    names = sorted(other)
    for part, flush in ((names[:9], False), (names[9:], True)):
        body = {
            "serialized_named_tensors": text_of({name: other[name] for name in part}),
            "load_format": "safetensors",
            "flush_cache": flush,
            "weight_version": f"{len(part)} tensors",
        }
        answer = http.post("/update_weights_from_tensor", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json().keys() == {"success", "message"}
    with tiny_engine(folders[1]) as fresh:
        expected = fresh.generate(input_ids=PROMPT, sampling_params=GREEDY)["output_ids"]
    after = generate(http)
    assert after["output_ids"] == expected
    assert after["meta_info"]["weight_version"] == f"{len(names) - 9} tensors"


def test_pickles_and_other_files_are_refused_and_nothing_changes(http: httpx.Client) -> None:
    before = generate(http)["output_ids"]
    good = save({"model.norm.weight": torch.zeros(64)})
    for data, said in (
        (pickle.dumps([("model.norm.weight", [0.0] * 64)]), "never opened"),
        (good[:-8], "no safetensors file"),
        (b"", "no safetensors file"),
        (save({"model.norm.weight": torch.zeros(65)}), "[65] instead of [64]"),
    ):
        body = {"serialized_named_tensors": [base64.b64encode(data).decode()]}
        answer = http.post("/update_weights_from_tensor", json=body)
        assert answer.status_code == 400 and answer.json()["success"] is False and said in answer.json()["message"]
    assert generate(http)["output_ids"] == before


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/update_weights_from_disk", {}, "model_path"),
        ("/update_weights_from_disk", {"model_path": 1}, "model_path"),
        ("/update_weights_from_disk", {"model_path": "x" * 5000}, "model_path"),
        ("/update_weights_from_disk", {"model_path": "x", "load_format": "pt"}, "load_format"),
        ("/update_weights_from_disk", {"model_path": "x", "load_format": []}, "load_format"),
        ("/update_weights_from_disk", {"model_path": "x", "is_async": True}, "is_async"),
        ("/update_weights_from_disk", {"model_path": "x", "keep_pause": True}, "keep_pause"),
        ("/update_weights_from_disk", {"model_path": "x", "manifest": {"a": 1}}, "manifest"),
        ("/update_weights_from_disk", {"model_path": "x", "flush_cache": "no"}, "flush_cache"),
        ("/update_weights_from_disk", {"model_path": "x", "abort_all_requests": 1}, "abort_all_requests"),
        ("/update_weights_from_disk", {"model_path": "x", "weight_version": "v" * 300}, "weight_version"),
        ("/update_weights_from_disk", {"model_path": "x", "weight_version": ""}, "weight_version"),
        ("/update_weights_from_disk", {"model_path": "x", "path": "y"}, "path"),
        ("/update_weights_from_tensor", {}, "serialized_named_tensors"),
        ("/update_weights_from_tensor", {"serialized_named_tensors": "QQ=="}, "serialized_named_tensors"),
        ("/update_weights_from_tensor", {"serialized_named_tensors": ["QQ==", "QQ=="]}, "serialized_named_tensors"),
        ("/update_weights_from_tensor", {"serialized_named_tensors": ["not base64"]}, "serialized_named_tensors"),
        ("/update_weights_from_tensor", {"serialized_named_tensors": ["é"]}, "serialized_named_tensors"),
        ("/update_weights_from_tensor", {"serialized_named_tensors": ["QQ=="], "load_format": "direct"}, "load_format"),
        ("/update_weight_version", {}, "new_version"),
        ("/update_weight_version", {"new_version": 2}, "new_version"),
        ("/get_weights_by_name", {}, "name"),
        ("/get_weights_by_name", {"name": "model.norm.weigh"}, "name"),
        ("/get_weights_by_name", {"name": "model.norm.weight", "truncate_size": 0}, "truncate_size"),
        ("/get_weights_by_name", {"name": "model.norm.weight", "truncate_size": 1e3}, "truncate_size"),
    ],
)
def test_wrong_fields_are_refused_by_name(http: httpx.Client, path: str, body: Any, param: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert http.get("/model_info").json()["weight_version"] == "default"


def test_only_the_admin_may(http: httpx.Client, engine: Engine) -> None:
    for path, body in ROUTES.items():
        for headers in ({"Authorization": "Bearer user"}, {"Authorization": "Bearer x"}, {"Authorization": ""}):
            assert http.post(path, json=body, headers=headers).status_code == 401, path
    server, url, thread = start(engine)
    with httpx.Client(base_url=url, timeout=60) as open_to_all:
        assert [open_to_all.post(path, json=body).status_code for path, body in ROUTES.items()] == [403] * 4
    server.should_exit = True
    thread.join(10)
    assert engine.weights.version.name == "default"


def test_weights_are_read_by_name(http: httpx.Client, folders: tuple[Path, Path]) -> None:
    tensors = load_file(folders[0] / "model.safetensors")
    key = tensors["model.layers.1.self_attn.k_proj.weight"]
    body = {"name": "model.layers.1.self_attn.k_proj.weight", "truncate_size": 3}
    assert http.post("/get_weights_by_name", json=body).json() == key[:3].tolist()
    assert http.get("/get_weights_by_name", params=body).json() == key[:3].tolist()
    assert http.request("GET", "/get_weights_by_name", json=body).json() == key[:3].tolist()
    norm = http.post("/get_weights_by_name", json={"name": "model.norm.weight"}).json()
    assert norm == tensors["model.norm.weight"].tolist()
    error = http.post("/get_weights_by_name", json={"name": "model.norm.weigh"}).json()["error"]["message"]
    assert "did you mean model.norm.weight" in error


def test_a_version_is_a_name_and_no_more(http: httpx.Client) -> None:
    before = generate(http)
    answer = http.post("/update_weight_version", json={"new_version": "v2", "abort_all_requests": False})
    assert answer.json() == {"success": True, "message": "the weights are now version v2", "new_version": "v2"}
    after = generate(http)
    assert after["meta_info"]["weight_version"] == "v2" and after["output_ids"] == before["output_ids"]
    assert after["meta_info"]["cached_tokens"] > 0


def test_an_output_says_which_of_its_tokens_had_which_weights(http: httpx.Client) -> None:
    body = {"input_ids": PROMPT, "sampling_params": {**GREEDY, "max_new_tokens": 400}, "stream": True}
    with http.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()
        events = [json.loads(next(lines)[6:])]
        http.post("/pause_generation", json={"mode": "in_place"})
        order = {"new_version": "v2", "abort_all_requests": False}
        assert http.post("/update_weight_version", json=order).json()["success"]
        http.post("/continue_generation")
        events += [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert all("weight_versions" not in event["meta_info"] for event in events[:-1])
    assert {event["meta_info"]["weight_version"] for event in events} == {"default", "v2"}
    first, second = events[-1]["meta_info"]["weight_versions"]
    assert (first["version"], first["start"], second["version"], second["end"]) == ("default", 0, "v2", 400)
    assert 0 < first["end"] == second["start"] < 400


def test_the_first_weights_may_have_a_name(folders: tuple[Path, Path]) -> None:
    with tiny_engine(folders[0], weight_version="base") as engine:
        meta = engine.generate(input_ids=PROMPT, sampling_params=GREEDY)["meta_info"]
    assert meta["weight_version"] == "base"
    assert meta["weight_versions"] == [{"version": "base", "start": 0, "end": 6}]


def test_many_updates_among_many_streams(http: httpx.Client, folders: tuple[Path, Path]) -> None:
    """Each stream ends once, with the output of one set of weights, and says which."""
    long = {**GREEDY, "max_new_tokens": 24}
    expected = {}
    for index, folder in enumerate(folders):
        with tiny_engine(folder) as fresh:
            expected[f"v{index}"] = fresh.generate(input_ids=PROMPT, sampling_params=long)["output_ids"]
    said = http.post("/update_weights_from_disk", json={"model_path": str(folders[0]), "weight_version": "v0"}).json()
    assert said["success"]
    ends: list[list[Any]] = []
    updates: list[int] = []

    def stream() -> None:
        body = {"input_ids": PROMPT, "sampling_params": long, "stream": True}
        with http.stream("POST", "/generate", json=body) as response:
            events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
        ends.append([event for event in events if event["meta_info"]["finish_reason"]])

    def update(index: int) -> None:
        body = {"model_path": str(folders[index]), "weight_version": f"v{index}"}
        updates.append(http.post("/update_weights_from_disk", json=body).status_code)

    threads = [threading.Thread(target=stream) for _ in range(12)]
    for number in range(4):
        threads.insert(3 * number + 2, threading.Thread(target=update, args=((number + 1) % 2,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert updates == [200] * 4 and [len(end) for end in ends] == [1] * 12
    for (event,) in ends:
        assert event["output_ids"] == expected[event["meta_info"]["weight_version"]]


def test_a_request_that_is_ended_for_it_is_told(http: httpx.Client, folders: tuple[Path, Path]) -> None:
    body = {"input_ids": PROMPT, "sampling_params": {**GREEDY, "max_new_tokens": 400}, "stream": True}
    with http.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        order = {"model_path": str(folders[1]), "abort_all_requests": True}
        assert http.post("/update_weights_from_disk", json=order).json()["success"]
        last = [json.loads(line[6:]) for line in lines if line.startswith("data: {")][-1]
    reason = last["meta_info"]["finish_reason"]
    assert reason["type"] == "abort" and "weights" in reason["message"]


def test_paused_requests_wait_and_are_counted(http: httpx.Client, folders: tuple[Path, Path]) -> None:
    """As trainers do it: pause, update, go on."""
    generate(http)
    assert http.post("/pause_generation", json={"mode": "retract"}).status_code == 200
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(generate(http)))
    waiting.start()
    while http.get("/server_info").json()["num_waiting"] == 0:
        pass
    order = {"model_path": str(folders[1]), "weight_version": "two"}
    assert http.post("/update_weights_from_disk", json=order).json()["num_paused_requests"] == 1
    assert not found
    http.post("/continue_generation")
    waiting.join(60)
    assert found[0]["meta_info"]["weight_version"] == "two" and found[0]["meta_info"]["cached_tokens"] == 0


def test_the_bodies_are_described(http: httpx.Client) -> None:
    paths = http.get("/openapi.json", headers=ADMIN).json()["paths"]
    for path in ROUTES:
        assert "requestBody" in paths[path]["post"]
