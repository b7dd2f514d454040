"""Engines whose attention is FlashInfer's: of the stand-in for it, which computes in float32 too here, in Triton's
interpreter. What comes of it is what transformers says. On a GPU where FlashInfer is installed, its scores are ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_matrix import GREEDY, PROMPTS, check, rest
from flashinfer_standin import Log, stand_in
from model_families import FAMILIES, Family, random_model
from tiny_engines import Oracle, tiny_engine
from tiny_models import make_checkpoint, make_tokenizer

from sglite import Engine
from sglite.runtime.backend import flashinfer
from sglite.runtime.backend.kernels.device import INTERPRETED
from sglite.runtime.config import ConfigError

pytest.importorskip("triton")
pytestmark = pytest.mark.timeout(600)
IMITATED = pytest.mark.skipif(not INTERPRETED, reason="a graph captures no plain torch that looks at its numbers")
INSTALLED = importlib.util.find_spec("flashinfer") is not None
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    monkeypatch.setattr(flashinfer, "DTYPES", (torch.bfloat16, torch.float32))
    with stand_in(dtypes=(torch.bfloat16, torch.float32)) as found:
        yield found


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("flashinfer") / "dense", **SIZES)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flashinfer") / "windows"
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2}
    family = FAMILIES["gemma3"]
    random_model(Family(family.model_type, {**family.config, **kinds, **SIZES})).save_pretrained(folder)
    return make_tokenizer(folder)


@cache
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


def engine_of(folder: Path, **arguments: Any) -> Engine:
    options = {"device": "cuda", "attention_backend": "flashinfer", "cuda_graph_max_bs": 4, "max_prefill_tokens": 64}
    return tiny_engine(folder, **{**options, "max_running_requests": 4, **arguments})


@IMITATED
def test_greedy_tokens_are_those_of_transformers(dense: Path, log: Log) -> None:
    """In chunks, in company that does not fill a graph's rows, and warm."""
    params = {**GREEDY, "max_new_tokens": 4}
    with engine_of(dense, max_prefill_tokens=24) as engine:
        assert engine.config.graph_sizes == (1, 2, 4) and "attention: flashinfer" in engine.config.kernels
        wrappers, plans = len(log.made), len(log.plans)
        for prompts in ([prompt[-9:] for prompt in PROMPTS[:3]], [PROMPTS[0][-9:]]):
            check(engine.generate(input_ids=prompts, sampling_params=params), oracle(dense), prompts, 4)
        rest(engine)
    planned = {(plan["graph"], plan["rows"]) for _, plan in log.plans[plans:]}
    assert {(True, 4), (True, 1)} < planned and any(not graph for graph, _ in planned)
    assert len(log.made) == wrappers == 2 + 3, "one for each kind of step, and one for each graph"


@IMITATED
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("dense", {"chunked_prefill_size": 7, "page_size": 1, "disable_cuda_graph": True}),
        ("windows", {}),
        ("windows", {"page_size": 3}),
    ],
    ids=str,
)
def test_engines_of_every_shape_give_the_same(request: Any, log: Log, kind: str, shape: dict[str, Any]) -> None:
    """As transformers and as sglite's own kernels, cold and warm, with scores of the whole prompt, and with frames."""
    folder, prompts, params = request.getfixturevalue(kind), PROMPTS[:4], {**GREEDY, "max_new_tokens": 6}
    whole = {"return_logprob": True, "logprob_start_len": 0}
    seen = []
    for kernels in ("flashinfer", "triton"):
        with engine_of(folder, attention_backend=kernels, max_total_tokens=512, **shape) as engine:
            check(engine.generate(input_ids=prompts, sampling_params=params), oracle(folder), prompts, 6)
            warm = engine.generate(input_ids=prompts, sampling_params=params, **whole)
            check(warm, oracle(folder), prompts, 6)
            drawn = engine.generate(input_ids=prompts, sampling_params={**params, "temperature": 0.8, "seed": 5})
            seen.append([result["output_ids"] for result in [*warm, *drawn]])
            assert (engine.config.num_frames > 0) == (kind == "windows")
            rest(engine)
    assert seen[0] == seen[1] and {plan["window"] for _, plan in log.plans} == ({-1} if kind == "dense" else {-1, 15})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kv_cache_dtype": "int8"}, "attention_backend='flashinfer': the KV cache is in int8, the model in float32"),
        ({"enable_deterministic_inference": True}, "attention_backend='flashinfer': its sums depend on the batch"),
        ({"device": "cpu"}, "attention_backend='flashinfer' is for GPUs and this engine runs on the cpu"),
    ],
    ids=str,
)
@IMITATED
def test_engines_that_cannot_be_served_do_not_start(
    dense: Path, log: Log, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_of(dense, **arguments)


@IMITATED
def test_models_with_sinks_do_not_start(tmp_path: Path, log: Log) -> None:
    family = FAMILIES["gpt_oss"]
    random_model(Family(family.model_type, {**family.config, **SIZES})).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="attention_backend='flashinfer': the model's softmax has sinks"):
        engine_of(make_tokenizer(tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or not INSTALLED, reason="FlashInfer and a GPU are not there")
@pytest.mark.parametrize("kind", ["dense", "windows"])
def test_scores_of_the_package_are_those_of_our_kernels(request: Any, kind: str) -> None:
    """In bfloat16, of prompts and of what is decoded behind them."""
    folder = request.getfixturevalue(kind)
    whole = {"return_logprob": True, "logprob_start_len": 0}
    scores = []
    for kernels in ("flashinfer", "triton"):
        with engine_of(folder, attention_backend=kernels, dtype="bfloat16", max_running_requests=8) as engine:
            results = engine.generate(input_ids=PROMPTS, sampling_params={**GREEDY, "max_new_tokens": 1}, **whole)
            longer = [[*prompt, 7, 8, 9] for prompt in PROMPTS]
            results += engine.generate(input_ids=longer, sampling_params={**GREEDY, "max_new_tokens": 1}, **whole)
            rows = [row for result in results for row in result["meta_info"]["input_token_logprobs"][1:]]
            scores.append(torch.tensor([row[0] for row in rows]))
            rest(engine)
    assert (scores[0] - scores[1]).abs().mean() < 0.05
