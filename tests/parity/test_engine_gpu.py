"""The matrices of the engine on the GPU's backend: on a GPU, or in Triton's interpreter, which is slow."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_matrix import GREEDY, PROMPTS, check, constrained, rest, walk
from model_families import FAMILIES, Family, random_model
from never_waits import never_waits
from paged_runner import Extend, PagedRunner
from tiny_engines import Oracle, some_prompts, tiny_engine
from tiny_models import make_checkpoint, make_tokenizer
from torch import Tensor

from sglite import Engine
from sglite.runtime.backend.base import Backend
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.kernels.device import INTERPRETED
from sglite.runtime.backend.select import backend_for
from sglite.runtime.model.loader import load_model

pytest.importorskip("triton")
REST = pytest.mark.slow if INTERPRETED else pytest.mark.gpu
pytestmark = pytest.mark.timeout(1800)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("qwen3", {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}),
    "experts": ("qwen3_moe", {}),
    "latents": ("deepseek_v3", {}),
    "sparse latents": ("deepseek_v32", {"index_topk": 16}),
    "windows": ("gemma3", {"layer_types": ["sliding_attention", "full_attention"]}),
    "sinks": ("gpt_oss", {}),
    "recurrent": ("qwen3_next", {}),
}
PROMPT = [(7 * i + 3) % 380 for i in range(70)]
every_kind = pytest.mark.parametrize("kind", [pytest.param(kind, marks=REST) for kind in KINDS])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def make(kind: str) -> Path:
        name, changes = KINDS[kind]
        folder = tmp_path_factory.mktemp("gpu") / "model"
        if name == "qwen3":
            return make_checkpoint(folder, **changes)
        family = FAMILIES[name]
        fields = {**family.config, **({} if name == "qwen3_next" else {"num_hidden_layers": 2}), **changes}
        random_model(Family(family.model_type, fields)).save_pretrained(folder)
        return make_tokenizer(folder)

    return make


@pytest.fixture(scope="module")
def oracles(made: Callable[[str], Path]) -> Callable[[str], Oracle]:
    return cache(lambda kind: Oracle(made(kind)))


def engine_of(made: Callable[[str], Path], kind: str, **arguments: Any) -> Engine:
    return tiny_engine(made(kind), **{"device": "cuda", "cuda_graph_max_bs": 4, "max_prefill_tokens": 64, **arguments})


@pytest.mark.skipif(not INTERPRETED, reason="the matrices below say more")
def test_a_short_answer_is_that_of_transformers(made: Any, oracles: Any) -> None:
    with engine_of(made, "dense", cuda_graph_max_bs=2) as engine:
        params = {**GREEDY, "max_new_tokens": 4}
        check(engine.generate(input_ids=PROMPTS[:2], sampling_params=params), oracles("dense"), PROMPTS[:2], 4)
        assert engine.config.device == "cuda" and engine.config.graph_sizes == (1, 2)
        rest(engine)


@pytest.mark.slow
@pytest.mark.skipif(not INTERPRETED, reason="what a graph runs is not called again")
def test_pages_that_are_read_once_change_nothing(made: Any, oracles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of branches that begin alike, in graphs and without, where a step saves as much as it is to."""
    from sglite.runtime.backend.cuda import CUDABackend  # needs triton

    seen: list[bool] = []
    plain = CUDABackend.attention

    def attention(self: CUDABackend, *args: Any, **options: Any) -> Tensor:
        seen.append(args[3].shared is not None)
        return plain(self, *args, **options)

    monkeypatch.setattr(CUDABackend, "attention", attention)
    prompts = [[*range(40, 73), 50 + i] for i in range(3)]  # two pages that are the same
    for cascade, graphs in (("64", True), ("64", False), ("65", True)):
        with engine_of(
            made, "dense", cuda_graph_max_bs=4, cascade_attention=cascade, disable_cuda_graph=not graphs
        ) as engine:
            assert "cascade_attention" in engine.config.kernels and engine.config.origins["kernels"] == "argument"
            engine.generate(input_ids=prompts[:1], sampling_params={**GREEDY, "max_new_tokens": 1})
            seen.clear()
            results = engine.generate(input_ids=prompts, sampling_params={**GREEDY, "max_new_tokens": 3})
            check(results, oracles("dense"), prompts, 3)
            assert any(seen) == (cascade == "64")
            rest(engine)


@every_kind
def test_greedy_tokens_and_scores_are_those_of_transformers(made: Any, oracles: Any, kind: str) -> None:
    """In company, cold, warm, with scores of the whole prompt, in chunks, with and without graphs."""
    for shape in ({}, {"chunked_prefill_size": 7, "page_size": 1, "disable_cuda_graph": True}):
        with engine_of(made, kind, **shape) as engine:
            check(engine.generate(input_ids=PROMPTS, sampling_params=GREEDY), oracles(kind))
            whole = {"return_logprob": True, "logprob_start_len": 0}
            check(engine.generate(input_ids=PROMPTS, sampling_params=GREEDY, **whole), oracles(kind))
            rest(engine)


@every_kind
def test_bfloat16_is_as_near_to_float32_as_plain_torch_is(made: Any, kind: str) -> None:
    """By the median over positions of the divergence from it: a router that hesitates may go the other way in some."""
    plain = CPUBackend()

    def logprobs(backend: Backend, dtype: str) -> Tensor:
        """Of prompts in chunks beside rows that decode."""
        runner = PagedRunner(load_model(made(kind), backend=backend, dtype=dtype), backend, page_size=4)
        found = runner.step([Extend("a", PROMPT[:40]), Extend("b", PROMPT[:3])])
        found += runner.step([Extend("a", PROMPT[40:]), Extend("b", [5])])
        found += runner.step([Extend("c", [9]), Extend("a", [11]), Extend("b", [6, 7])])
        return torch.cat(found).cpu().double().log_softmax(-1)

    exact = logprobs(plain, "float32")
    with torch.inference_mode():
        ours, theirs = (
            (exact.exp() * (exact - logprobs(backend, "bfloat16"))).sum(-1).median().item()
            for backend in (backend_for("cuda"), plain)
        )
    assert 0 < ours <= 1.5 * theirs and ours < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="the interpreter computes on the host")
@pytest.mark.parametrize("graphs", [True, False])
def test_no_step_waits_for_the_device(made: Any, graphs: bool) -> None:
    """Prompts, decoding, sampling and masks, once all kernels are there: by torch, which refuses what would wait."""
    with engine_of(made, "dense", disable_cuda_graph=not graphs) as engine:
        for checked in (False, True):
            with never_waits() if checked else nullcontext():
                engine.generate(input_ids=PROMPTS, sampling_params=GREEDY)
                engine.generate(input_ids=PROMPTS, sampling_params={**GREEDY, "temperature": 0.8, "top_p": 0.9})
                constrained(engine, 1.0)
        rest(engine)


@every_kind
def test_preempted_requests_give_the_same(made: Any, oracles: Any, kind: str) -> None:
    prompts = some_prompts(8, seed=9, longest=40)
    with engine_of(made, kind, max_total_tokens=192) as engine:
        results = engine.generate(input_ids=prompts, sampling_params={**GREEDY, "max_new_tokens": 30})
        check(results, oracles(kind), prompts, 30)
        assert engine.get_server_info()["preemptions"] > 0
        rest(engine)


@every_kind
def test_overlap_graphs_and_company_change_nothing(made: Any, kind: str) -> None:
    """Sampled with seeds, constrained with values taken back, and random programs."""
    params = [{**GREEDY, "temperature": 0.8, "seed": 11 + i, "top_p": 0.9, "top_k": 40} for i in range(len(PROMPTS))]
    seen = []
    for shape in ({}, {"disable_overlap_schedule": True, "disable_cuda_graph": True}, {"jump_forward": False}):
        with engine_of(made, kind, **shape) as engine:
            batch = engine.generate(input_ids=PROMPTS, sampling_params=params)
            held = constrained(engine, 1.0)
            seen.append([result["output_ids"] for result in [*batch, *held]] + walk(engine, 3))
            rest(engine)
    assert seen[1] == seen[0] and seen[2] == seen[0]
