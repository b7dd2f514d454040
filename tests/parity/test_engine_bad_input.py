"""What cannot be run is refused in one line with the value; what the line says works; and the engine still serves.

Where a message names an argument that fixes the call, the test takes it from the message, word for word, and uses it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_engines import is_idle, settles, threads_of_engines, tiny_engine
from tiny_models import make_checkpoint

from sglite import Engine

GREEDY = {"temperature": 0, "max_new_tokens": 4}
MARKED = 300
"""A token whose embedding is broken in one checkpoint."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("bad") / "model", seed=2, shards=2)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with tiny_engine(folder, grammar_timeout_s=20) as engine:
        yield engine


def still_serves(engine: Engine) -> None:
    """It answers, and nothing of the refused call is left."""
    assert len(engine.generate("x", {**GREEDY, "ignore_eos": True})["output_ids"]) == 4
    assert settles(lambda: is_idle(engine), 2.0)


def refusal(call: Callable[[], Any], kind: type[Exception] = ValueError) -> str:
    """The message of the error that a call raises: one line."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 400
    return message


def params(**more: Any) -> dict[str, Any]:
    return {"sampling_params": {**GREEDY, **more}}


REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "empty prompt": ({"prompt": ""}, "prompt is empty"),
    "empty prompt in a batch": ({"prompt": ["x", ""]}, "prompt is empty"),
    "no prompt": ({}, "give either prompt or input_ids"),
    "two prompts": ({"prompt": "x", "input_ids": [1]}, "not both"),
    "empty ids": ({"input_ids": []}, "input_ids is empty"),
    "ids of text": ({"input_ids": ["x"]}, "must be a list of token ids"),
    "id out of range": ({"input_ids": [9999]}, "9999"),
    "half a character": ({"prompt": "\ud800"}, "lone surrogate at index 0"),
    "prompt beyond the context": ({"input_ids": [5] * 600}, "the prompt has 600 tokens and the engine holds 512"),
    "too many new tokens": ({"prompt": "x", **params(max_new_tokens=9999)}, "max_new_tokens=9999"),
    "parameter misspelt": ({"prompt": "x", **params(max_new_token=3)}, "did you mean max_new_tokens?"),
    "parameter out of range": ({"prompt": "x", **params(temperature=-1)}, "temperature must be in [0, 1000000]"),
    "option misspelt": ({"prompt": "x", "cache_sal": "x"}, "cache_sal"),
    "broken regex": ({"prompt": "x", **params(regex="(")}, "regex '(': missing )"),
    "regex that contradicts itself": ({"prompt": "x", **params(regex="(?=a)b")}, "regex '(?=a)b': matches nothing"),
    "impossible regex": ({"prompt": "x", **params(regex=r"[^\s\S]")}, r"[^\\s\\S]"),
    "schema that is no JSON": ({"prompt": "x", **params(json_schema="{")}, "json_schema cannot be read"),
    "schema with a wrong type": ({"prompt": "x", **params(json_schema='{"type": "bogus"}')}, "/type"),
    "schema without a value": ({"prompt": "x", **params(json_schema={"not": {}})}, "matches nothing"),
    "schema from elsewhere": ({"prompt": "x", **params(json_schema={"items": {"$ref": "http://a.b"}})}, "/items/$ref"),
    "impossible schema": (
        {"prompt": "x", **params(json_schema={"type": "integer", "minimum": 5, "maximum": 3})},
        "json_schema",
    ),
    "two constraints": ({"prompt": "x", **params(regex="a", choice=["b"])}, "only one of"),
    "broken stop pattern": ({"prompt": "x", **params(stop_regex="(")}, "stop pattern '(' does not compile"),
    "bias out of range": ({"prompt": "x", **params(logit_bias={"9999": 1})}, "9999"),
    "masks excluding each other": (
        {"prompt": "x", **params(allowed_token_ids=[2], min_new_tokens=2)},
        "min_new_tokens=2",
    ),
    "logprobs beyond the prompt": (
        {"prompt": "abc", "return_logprob": True, "logprob_start_len": 50, **params()},
        "logprob_start_len=50 is beyond the prompt of 3 tokens",
    ),
    "too many alternatives": ({"prompt": "x", "return_logprob": True, "top_logprobs_num": 5000, **params()}, "5000"),
    "too few parameters": ({"prompt": ["a", "b"], "sampling_params": [GREEDY]}, "1 entries for 2 prompts"),
    "one name for two": ({"prompt": ["a", "b"], "rid": "same", "sampling_params": GREEDY}, "'same'"),
    "priority": ({"prompt": "x", "priority": "high", **params()}, "priority"),
    "time limit": ({"prompt": "x", "timeout_s": -1, **params()}, "timeout_s must be a positive number"),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_cannot_run_is_told_so_in_one_line(folder: Path, engine: Engine, name: str) -> None:
    call, message = REQUESTS[name]
    kind = TypeError if name == "option misspelt" else ValueError
    if name == "priority":  # an engine of its own, as long as this can bring one down
        with tiny_engine(folder) as engine:
            assert message in refusal(lambda: engine.generate(**call), kind)
            still_serves(engine)
        return
    assert message in refusal(lambda: engine.generate(**call), kind)
    still_serves(engine)


def test_the_length_that_a_refusal_offers_is_accepted(engine: Engine) -> None:
    message = refusal(lambda: engine.generate(input_ids=[5] * 500, sampling_params={"max_new_tokens": 100}))
    found = re.search(r"give max_new_tokens<=(\d+)", message)
    assert found is not None
    fixed = {"max_new_tokens": int(found[1]), "ignore_eos": True}
    assert len(engine.generate(input_ids=[5] * 500, sampling_params=fixed)["output_ids"]) == int(found[1])
    one_more = {"max_new_tokens": int(found[1]) + 1}
    refusal(lambda: engine.generate(input_ids=[5] * 500, sampling_params=one_more))


def test_the_pool_size_that_a_refusal_asks_for_is_enough(folder: Path) -> None:
    with tiny_engine(folder, max_total_tokens=64) as engine:
        message = refusal(lambda: engine.generate(input_ids=[5] * 100, sampling_params=GREEDY))
        assert "the prompt has 100 tokens" in message
        found = re.search(r"raise (max_total_tokens) \(now 64\)", message)
        assert found is not None
    with tiny_engine(folder, **{found[1]: 128}) as engine:
        assert engine.generate(input_ids=[5] * 100, sampling_params=GREEDY)["output_ids"]


@pytest.mark.parametrize(("name", "value"), [("max_new_token", 3), ("temprature", 0.5), ("min_token", 1)])
def test_the_parameter_that_a_refusal_suggests_is_accepted(engine: Engine, name: str, value: Any) -> None:
    message = refusal(lambda: engine.generate("x", {name: value}))
    found = re.search(r"did you mean (\w+)\?", message)
    assert found is not None and str(value) in message
    assert engine.generate("x", {**GREEDY, found[1]: value})["output_ids"]


@pytest.mark.parametrize(("name", "value"), [("page_sizes", 4), ("chunked_prefil_size", 8), ("dtyp", "float32")])
def test_the_engine_argument_that_a_refusal_suggests_is_accepted(folder: Path, name: str, value: Any) -> None:
    message = refusal(lambda: tiny_engine(folder, **{name: value}))
    found = re.search(r"did you mean (\w+)\?", message)
    assert found is not None and str(value) in message
    with tiny_engine(folder, **{found[1]: value}) as engine:
        still_serves(engine)


@pytest.mark.parametrize(
    ("arguments", "message", "fix"),
    [
        ({"page_size": 0}, "page_size must be a positive integer, got 0", None),
        ({"context_length": 100_000}, "context_length=100000 exceeds", r"give (context_length)<=(\d+)"),
        ({"schedule_policy": "best"}, "must be one of program, fcfs, lpm, dfs-weight, got 'best'", None),
        ({"device": "abacus"}, "device='abacus' is not available", r"use (device)='(\w+)'"),
        ({"dtype": "int3"}, "dtype='int3' is not served", None),
        ({"max_total_tokens": 10**12}, "max_total_tokens=1000000000000 needs", None),
        ({"trust_remote_code": True}, "runs no code from checkpoints", None),
        ({"tp_size": 2}, "tp_size=2: sglite runs on one device so far", None),
        ({"quantization": "fp8"}, "is not quantised", None),
        ({"kv_cache_dtype": "int4"}, "kv_cache_dtype='int4'", None),
        ({"mem_fraction_static": 1.5}, "mem_fraction_static must be between 0 and 1, got 1.5", None),
        ({"log_level": "loud"}, "log_level must be one of", None),
        ({"max_running_requests": -1}, "max_running_requests must be a positive integer, got -1", None),
    ],
)
def test_an_engine_argument_that_cannot_be_used_is_refused(
    folder: Path, arguments: dict[str, Any], message: str, fix: str | None
) -> None:
    """And nothing keeps running behind the error."""
    before = threads_of_engines()
    got = refusal(lambda: tiny_engine(folder, **arguments))
    assert message in got
    assert settles(lambda: threads_of_engines() <= before)
    if fix is not None:
        found = re.search(fix, got)
        assert found is not None
        value: Any = int(found[2]) if found[2].isdigit() else found[2]
        with tiny_engine(folder, **{**arguments, found[1]: value}) as engine:
            still_serves(engine)


def lose_a_shard(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def lose_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def lose_the_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def misstate_the_vocabulary(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))


def become_another_family(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": ["NoSuchModel"], "model_type": "nosuch"})
    )


def cut_a_shard(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])


def add_an_adapter(folder: Path) -> None:
    """As an exporter of DoRA leaves it: magnitudes beside the weights."""
    save_file({"model.layers.0.self_attn.q_proj.lora_magnitude_vector": torch.ones(4)}, folder / "extra.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.0.self_attn.q_proj.lora_magnitude_vector"] = "extra.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def take_another_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    longest = max(vocabulary, key=lambda token: vocabulary[token])
    vocabulary[longest] = 400  # the embedding has 384 rows
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_a_shard, "model-00002-of-00002.safetensors is not a readable safetensors file"),
        (add_an_adapter, "1 unexpected: model.layers.0.self_attn.q_proj.lora_magnitude_vector [4]"),
        (take_another_tokenizer, "tokens from id 400 on, beyond the model's 384 embeddings"),
        (lose_a_shard, "model-00002-of-00002.safetensors"),
        (lose_the_tokenizer, "tokenizer.json"),
        (lose_the_config, "config.json"),
        (misstate_the_vocabulary, "vocab_size=100"),
        (become_another_family, "NoSuchModel"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_model_is_refused_by_name(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    damage(copy)
    before = threads_of_engines()
    got = refusal(lambda: tiny_engine(copy))
    assert message in got
    assert threads_of_engines() <= before


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model here")
    assert "config.json" in refusal(lambda: tiny_engine(tmp_path))
    assert "neither an existing folder nor a hub name" in refusal(lambda: tiny_engine(tmp_path / "nowhere/at/all"))


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_fail_the_requests_that_use_them_and_no_other(
    tmp_path: Path, value: float, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of the embedding is broken: only prompts with that token see it, even in the same batch.

    Loading would refuse it, so that look is left out: what comes later, from arithmetic, is the same to the engine."""
    monkeypatch.setattr("sglite.runtime.model.loader.check_finite", lambda *_: None)
    broken = make_checkpoint(tmp_path / "model", seed=2)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.embed_tokens.weight"][MARKED] = torch.tensor(value)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with tiny_engine(broken, disable_overlap_schedule=not overlap) as engine:
        good = [5, 6, 7]
        want = engine.generate(input_ids=good, sampling_params=GREEDY)["output_ids"]
        streams = [
            engine.generate(input_ids=ids, sampling_params=GREEDY, stream=True)
            for ids in (good, [5, 6, MARKED, 8], [9, 10], [5, 6, MARKED])
        ]
        assert list(streams[0])[-1]["output_ids"] == want
        for stream in (streams[1], streams[3]):
            assert "finite" in refusal(lambda stream=stream: list(stream), RuntimeError)
        assert list(streams[2])[-1]["output_ids"]
        ids = [5, 6, MARKED, 8]
        scored = {"return_logprob": True, "logprob_start_len": 0, "sampling_params": {**GREEDY, "max_new_tokens": 0}}
        assert "finite" in refusal(lambda: engine.generate(input_ids=ids, **scored), RuntimeError)
        still_serves(engine)


def test_a_batch_with_one_bad_member_leaves_none_of_the_others_running(engine: Engine) -> None:
    long = {"max_new_tokens": 500, "ignore_eos": True}
    refusal(lambda: engine.generate(["a", "b", "c"], [long, long, {"logit_bias": {"9999": 1}}]))
    still_serves(engine)


def test_the_last_seed_there_is_with_several_outputs(engine: Engine) -> None:
    """Seeds of n outputs count on from the one given, wherever that is."""
    results = engine.generate("x", {**GREEDY, "temperature": 1, "n": 2, "seed": 2**64 - 1})
    assert len(results) == 2
    still_serves(engine)


def test_time_limits_are_kept_by_the_clock_on_the_wall(engine: Engine) -> None:
    result = engine.generate("x", {"max_new_tokens": 400, "ignore_eos": True, "temperature": 0}, timeout_s=0.05)
    reason = result["meta_info"]["finish_reason"]
    assert reason["type"] == "abort" and reason["code"] == "timeout" and "timeout_s=0.05" in reason["message"]
    assert len(result["output_ids"]) < 400
    still_serves(engine)


def test_masks_that_turn_out_to_exclude_each_other_are_an_error(engine: Engine) -> None:
    """The text has two characters and more tokens are wanted: known only when it has ended."""
    message = refusal(
        lambda: engine.generate("x", {**GREEDY, "max_new_tokens": 9, "regex": "ab", "min_new_tokens": 5}), RuntimeError
    )
    assert "min_new_tokens=5" in message
    still_serves(engine)
