"""Weights replaced in a model that runs: the same as a model started with them, bit for bit; or nothing at all."""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from tiny_engines import some_prompts, tiny_engine
from tiny_models import make_checkpoint, random_weights, tiny_config, write_weights

from sglite import Engine
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.engine.generation import EngineError
from sglite.runtime.engine.remote import RemoteClient
from sglite.runtime.engine.spawned import Spawned
from sglite.runtime.model.loader import load_model
from sglite.runtime.model.reload import ModelWeights
from sglite.runtime.protocol import UpdateWeights

GREEDY = {"temperature": 0.0, "max_new_tokens": 8, "ignore_eos": True}
PROMPTS = some_prompts(6, seed=3)


def outputs(engine: Engine) -> list[Any]:
    """Ids and log probabilities of prompts and outputs. One prompt at a time: no batch is like another."""
    options = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2}
    found = [engine.generate(input_ids=prompt, sampling_params=GREEDY, **options) for prompt in PROMPTS]
    names = ("input_token_logprobs", "output_token_logprobs", "output_top_logprobs")
    return [(one["output_ids"], *(one["meta_info"][name] for name in names)) for one in found]


def cached(engine: Engine) -> int:
    return int(engine.generate(input_ids=PROMPTS[0], sampling_params=GREEDY)["meta_info"]["cached_tokens"])


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("old") / "m", seed=1)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("new") / "m", seed=2, shards=3)


@pytest.fixture(scope="module")
def truth(new: Path) -> list[Any]:
    with tiny_engine(new) as engine:
        return outputs(engine)


@pytest.fixture
def engine(old: Path) -> Iterator[Engine]:
    with tiny_engine(old) as engine:
        yield engine


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_after_an_update_outputs_are_those_of_a_fresh_engine(tmp_path: Path, family: str, tied: bool) -> None:
    make = functools.partial(make_checkpoint, family=family, tie_word_embeddings=tied)
    old, new = make(tmp_path / "old", seed=1), make(tmp_path / "new", seed=2)
    with tiny_engine(new) as engine:
        expected = outputs(engine)
    with tiny_engine(old) as engine:
        before = outputs(engine)
        assert before != expected and cached(engine) > 0
        success, message, paused = engine.update_weights_from_disk(str(new))
        assert success and str(new) in message and paused == 0
        assert cached(engine) == 0
        engine.flush_cache()
        assert outputs(engine) == expected
        assert engine.update_weights_from_disk(str(old), load_format="safetensors")[0]
        assert outputs(engine) == before


def test_weights_of_another_type_are_cast_as_they_are_when_a_model_is_loaded(tmp_path: Path, engine: Engine) -> None:
    half = make_checkpoint(tmp_path / "half", seed=5, dtype="bfloat16", shards=2)
    with tiny_engine(half) as fresh:
        expected = outputs(fresh)
    assert engine.update_weights_from_disk(str(half))[0]
    assert outputs(engine) == expected


def test_a_folder_of_weights_alone_will_do(tmp_path: Path, engine: Engine, new: Path, truth: list[Any]) -> None:
    """Trainers write no tokenizer, and some no configuration."""
    for file in new.glob("model*"):
        shutil.copy(file, tmp_path / file.name)
    assert engine.update_weights_from_disk(str(tmp_path))[0]
    assert outputs(engine) == truth


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = random_weights(tiny_config(), 9)
    change(tensors)
    write_weights(folder, tensors)


def _missing(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "q_proj" in name or "layers.1" in name]:
            del tensors[name]

    _rewrite(folder, change)


def _unexpected(folder: Path) -> None:
    _rewrite(folder, lambda tensors: tensors.update({f"model.extra.{i}.weight": torch.zeros(2) for i in range(12)}))


def _shape(folder: Path) -> None:
    _rewrite(folder, lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(96, 63)}))


def _integers(folder: Path) -> None:
    _rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}))


def _truncated(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _other_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(tiny_config(rope_theta=5e5, rms_norm_eps=1e-5)))


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": 1}))


def _elsewhere(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _a_shard_less(folder: Path) -> None:
    write_weights(folder, random_weights(tiny_config(), 9), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _gone(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_missing, ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.post_attention_layernorm.weight"]),
        (_unexpected, [f"model.extra.{i}.weight" for i in range(12)]),
        (_shape, ["model.layers.1.mlp.up_proj.weight [96, 63] instead of [96, 64]"]),
        (_integers, ["model.norm.weight", "I8"]),
        (_truncated, ["model.safetensors"]),
        (_other_model, ["rope", "500000", "rms_norm_eps 1e-05 instead of 1e-06"]),
        (_pickled, ["pytorch_model.bin", "never opened"]),
        (_elsewhere, ["not the name of a safetensors file"]),
        (_a_shard_less, ["model-00002-of-00003.safetensors"]),
        (_empty, ["no *.safetensors"]),
        (_gone, ["is no folder", "nothing is fetched"]),
    ],
)
def test_a_bad_checkpoint_changes_nothing(
    tmp_path: Path, engine: Engine, spoil: Callable[[Path], None], named: list[str]
) -> None:
    before = outputs(engine)
    folder = make_checkpoint(tmp_path / "bad", seed=9)
    spoil(folder)
    version, path = engine.weights.version.name, engine.weights.path
    success, message, paused = engine.update_weights_from_disk(str(folder))
    assert not success and paused == 0 and "\n" not in message
    assert all(name in message for name in named), message
    assert cached(engine) > 0, "the cache was given up for nothing"
    engine.flush_cache()
    assert outputs(engine) == before
    assert (engine.weights.version.name, engine.weights.path) == (version, path)


def test_a_head_that_should_be_the_embedding_is_compared_before_anything_is_written(tmp_path: Path) -> None:
    tied = make_checkpoint(tmp_path / "tied", seed=1, tie_word_embeddings=True)
    other = make_checkpoint(tmp_path / "other", seed=2, tie_word_embeddings=True)
    tensors = load_file(other / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    with tiny_engine(tied) as engine:
        before = outputs(engine)
        save_file({**tensors, "lm_head.weight": embedding + 1}, other / "model.safetensors")
        success, message, _ = engine.update_weights_from_disk(str(other))
        assert not success and "lm_head.weight differs from model.embed_tokens.weight" in message
        success, message = engine.update_weights_from_tensor([("lm_head.weight", embedding)])
        assert not success and "lm_head.weight differs" in message
        engine.flush_cache()
        assert outputs(engine) == before
        pair = [("lm_head.weight", embedding), ("model.embed_tokens.weight", embedding)]
        assert engine.update_weights_from_tensor(pair)[0]
        save_file({**tensors, "lm_head.weight": embedding.clone()}, other / "model.safetensors")
        assert engine.update_weights_from_disk(str(other))[0]


def test_to_check_is_not_to_write(old: Path, new: Path) -> None:
    backend = CPUBackend(1)
    loaded = load_model(old, backend=backend, dtype="float32")
    weights = ModelWeights(loaded.weights, loaded.config, backend)
    before = weights.read("model.norm.weight", 64)
    for source in (str(new), save({"model.norm.weight": torch.ones(64)})):
        weights.check(source)
        assert weights.read("model.norm.weight", 64) == before
        weights.load(source)
        assert weights.read("model.norm.weight", 64) != before
        weights.load(str(old))


def test_a_hub_name_is_not_fetched(engine: Engine) -> None:
    for name in ("Qwen/Qwen3-0.6B", "https://example.com/model", "s3://bucket/model", "", "\0"):
        success, message, _ = engine.update_weights_from_disk(name)
        assert not success and "\n" not in message


def test_some_tensors_at_a_time_make_the_whole(engine: Engine, truth: list[Any]) -> None:
    """As trainers send them: in several calls, the last of which gives up the cache."""
    outputs(engine)
    tensors = list(random_weights(tiny_config(), 2).items())
    pieces = [tensors[i::4] for i in range(4)]
    engine.pause("retract")
    for piece in pieces:
        last = piece is pieces[-1]
        assert engine.update_weights_from_tensor(piece, load_format="safetensors", flush_cache=last) == (
            True,
            "the tensors are in use",
        )
    engine.resume()
    assert outputs(engine) == truth


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"model.norm.weight": torch.zeros(63)}, "model.norm.weight has shape [63] instead of [64]"),
        ({"model.norm.bias": torch.zeros(64)}, "model.norm.bias is unexpected"),
        ({"model.norm.weight": torch.zeros(64, dtype=torch.int64)}, "model.norm.weight has type int64"),
        ({"model.layers.0.self_attn.qkv_proj.weight": torch.zeros(128, 64)}, "qkv_proj.weight is unexpected"),
        ({}, "no tensor"),
    ],
)
def test_tensors_that_do_not_fit_change_nothing(engine: Engine, tensors: dict[str, torch.Tensor], said: str) -> None:
    before = outputs(engine)
    good = {"model.layers.0.mlp.up_proj.weight": torch.ones(96, 64)} if tensors else {}
    success, message = engine.update_weights_from_tensor([*good.items(), *tensors.items()])
    assert not success and said in message
    engine.flush_cache()
    assert outputs(engine) == before


class _Trap:
    """A pickle of it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def test_what_is_no_safetensors_file_is_refused_and_never_run(engine: Engine, tmp_path: Path) -> None:
    before, trace = outputs(engine), tmp_path / "trace"
    whole = save({"model.norm.weight": torch.ones(64)})
    torch.save({"model.norm.weight": torch.ones(64)}, tmp_path / "t.pt")
    pickles = [pickle.dumps(_Trap(trace), protocol) for protocol in range(2, 6)]
    lies = struct.pack("<Q", 2**60) + b"{}"
    others = [whole[:-1], whole[:20], lies, b"", b"\0" * 64, whole + b"x"]
    for data in [*pickles, (tmp_path / "t.pt").read_bytes(), *others]:
        result = engine.weights.update(UpdateWeights(tensors=data)).result()
        assert not result.success, data[:20]
        assert ("never opened" in result.message) == (data in pickles or data[:2] == b"PK")
    assert not trace.exists()
    engine.flush_cache()
    assert outputs(engine) == before


def test_weights_that_are_not_numbers_are_refused(engine: Engine, old: Path, tmp_path: Path) -> None:
    """As when a model is loaded; nothing is written of a folder whose last tensor is bad."""
    before = outputs(engine)
    result = engine.update_weights_from_tensor([("model.norm.weight", torch.full((64,), float("nan")))])
    assert not result[0] and "model.norm.weight holds NaN or infinity" in result[1]
    copy = Path(shutil.copytree(old, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    tensors[max(tensors)] = torch.full_like(tensors[max(tensors)], float("inf"))
    save_file(tensors, copy / "model.safetensors")
    told = engine.update_weights_from_disk(str(copy))
    assert not told[0] and "holds NaN or infinity" in told[1]
    engine.flush_cache()
    assert outputs(engine) == before


def test_weights_are_read_by_the_checkpoints_names(engine: Engine, old: Path) -> None:
    """Also those that the model keeps in one tensor with others."""
    for name, tensor in load_file(old / "model.safetensors").items():
        assert engine.get_weights_by_name(name, truncate_size=5) == tensor[:5].tolist(), name
    assert len(engine.get_weights_by_name("model.embed_tokens.weight")) == 100
    with pytest.raises(ValueError, match="did you mean model"):
        engine.get_weights_by_name("model.norms.weight")


def test_formats_that_are_not_read_are_refused(engine: Engine, new: Path) -> None:
    for load_format in ("pt", "dummy", "flattened_bucket", "direct"):
        with pytest.raises(ValueError, match="load_format"):
            engine.update_weights_from_disk(str(new), load_format=load_format)
        with pytest.raises(ValueError, match="load_format"):
            engine.update_weights_from_tensor([], load_format=load_format)


@pytest.mark.slow
def test_an_engine_in_another_process_does_the_same_and_comes_back_with_it(
    old: Path, new: Path, truth: list[Any]
) -> None:
    """Weights from a folder survive the process; of tensors there is no second copy, so it is not started again."""
    launch = functools.partial(Spawned, restart=True)
    with tiny_engine(old, launch=launch) as engine:
        client = engine.client
        assert isinstance(client, RemoteClient)
        before = outputs(engine)
        success, message, _ = engine.update_weights_from_disk(str(old / "nothing"))
        assert not success and "is no folder" in message
        assert engine.update_weights_from_disk(str(new))[:1] == (True,)
        assert outputs(engine) == truth != before
        os.kill(client.pid, signal.SIGKILL)
        for _ in range(600):
            if engine.health().restarts == 1 and engine.health().state == "running":
                break
            signal.sigtimedwait([], 0.05)
        assert outputs(engine) == truth
        tensors = list(random_weights(tiny_config(), 1).items())
        assert engine.update_weights_from_tensor(tensors) == (True, "the tensors are in use")
        engine.flush_cache()
        assert outputs(engine) == before
        assert engine.get_weights_by_name("model.norm.weight", 3) == tensors[-2][1][:3].tolist()
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(EngineError):
            engine.get_weights_by_name("model.norm.weight", 3)
        assert engine.health().state == "dead"
