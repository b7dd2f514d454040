"""Every value of the configuration is settled once, and says where it comes from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sglite.runtime.config import POLICIES, ConfigError, EngineArgs, EngineConfig, Facts
from sglite.runtime.engine import policy
from sglite.runtime.resolve import resolve

FACTS = Facts(
    max_context=4096, vocab_size=1000, bytes_per_token=1024, free_memory=2**30, dtype="bfloat16", device="cpu"
)


def test_every_policy_can_be_asked_for():
    assert set(POLICIES) == set(policy.POLICIES)


def settle(facts: Facts = FACTS, **given: object) -> EngineConfig:
    return resolve(EngineArgs.of(given), facts)


def test_every_value_has_an_origin():
    config = settle(page_size=8, dtype="bfloat16")
    described = config.describe()
    assert {name: entry["origin"] for name, entry in described.items()} == {
        "context_length": "model",
        "num_pages": "default",
        "page_size": "argument",
        "max_step_tokens": "default",
        "max_running": "default",
        "chunk_size": "default",
        "overlap": "default",
        "grammar_backend": "default",
        "jump_forward": "default",
        "pin_budget": "default",
        "dtype": "argument",
        "device": "hardware",
        "vocab_size": "model",
        "kernels": "hardware",
        "hidden_size": "model",
        "labels": "model",
        "generates": "model",
        "quantization": "model",
        "cache_dtype": "model",
        "num_states": "model",
        "state_groups": "model",
        "window": "model",
        "num_frames": "model",
        "graph_sizes": "hardware",
    }


@pytest.mark.parametrize(
    ("given", "free", "tokens", "origin"),
    [
        ({}, 2**40, 65_536, "default"),
        ({}, 2**25, 2**14, "hardware"),
        ({"max_total_tokens": 1000}, 2**30, 1008, "argument"),
        ({"mem_fraction_static": 0.75}, 2**30, 786_432, "argument"),
    ],
)
def test_the_size_of_the_cache(given, free, tokens, origin):
    """By default a fixed size within half of the free memory; the caller's words come first."""
    facts = Facts(**{**FACTS.__dict__, "free_memory": free})
    config = settle(facts, **given)
    assert (config.max_total_tokens, config.origins["num_pages"]) == (tokens, origin)


@pytest.mark.parametrize(
    ("window", "share", "given", "frames"),
    [
        (128, 768, {"max_running_requests": 16}, 2 * 16 * 10 + 128),
        (128, 1024, {"max_running_requests": 16}, 2 * 16 * 10 + 128),
        (128, 768, {"max_running_requests": 16, "max_total_tokens": 1600}, 0),
        (4096, 768, {}, 0),
        (None, 0, {}, 0),
    ],
)
def test_layers_with_a_window_have_frames_where_these_are_fewer_than_the_pages(window, share, given, frames):
    """What they save goes to the pages of the others; a pool in which all windows fit anyway is not split."""
    facts = {**FACTS.__dict__, "free_memory": 2**26, "window": window, "window_bytes_per_token": share}
    config, plain = settle(Facts(**facts), **given), settle(Facts(**{**facts, "window": None}), **given)
    assert config.num_frames == frames and config.window == window
    used = config.max_total_tokens * (1024 - share) + frames * 16 * share
    if frames:
        assert config.num_pages > plain.num_pages and config.num_pages <= 16 * frames
        assert used <= 2**25 + frames * 16 * share
    else:
        assert config.num_pages == plain.num_pages


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_total_tokens": 2**21}, "give max_total_tokens<=1048576"),
        ({"context_length": 8192}, "give context_length<=4096"),
        ({"mem_fraction_static": 0.5, "max_total_tokens": 64}, "both set the cache's size"),
        ({"pagesize": 4}, "did you mean page_size?"),
        ({"grammar_backend": "fast"}, "grammar_backend must be one of auto, native, xgrammar, reference, got 'fast'"),
        ({"cpu_kernels": "sse"}, "one of auto, torch, avx2, avx512, avx512_vnni, avx512_bf16, avx512_amx, got 'sse'"),
        ({"cascade_attention": 8192}, "cascade_attention must be auto, never or a number of slots as text, got 8192"),
        ({"cascade_attention": "0"}, "cascade_attention must be auto, never or a number of slots as text, got '0'"),
        ({"jump_forward": "no"}, "jump_forward must be True or False, got 'no'"),
        ({"pin_budget": 1.5}, "pin_budget must be between 0 and 1, got 1.5"),
        ({"pin_budget": True}, "pin_budget must be between 0 and 1, got True"),
        ({"weight_version": ""}, "weight_version must be text of 1 to 256 characters, got ''"),
        ({"weight_version": 7}, "weight_version must be text of 1 to 256 characters, got 7"),
        ({"chunked_prefill_size": True}, "chunked_prefill_size must be a positive integer, got True"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(given, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?").replace("<=", "<=")):
        settle(**given)


GPU = Facts(
    max_context=40_960, vocab_size=1000, bytes_per_token=1024, free_memory=2**30, dtype="bfloat16", device="cuda"
)


def test_a_gpu_takes_more_at_once_and_gives_the_cache_what_is_free():
    config = settle(GPU)
    assert (config.max_running, config.max_step_tokens) == (256, 8192)
    assert config.num_pages == int(2**30 * 0.9) // 1024 // 16 and config.origins["num_pages"] == "hardware"
    assert settle(GPU, max_running_requests=64).max_running == 64
    assert settle(GPU, mem_fraction_static=0.5).num_pages == 2**29 // 1024 // 16
    with pytest.raises(ConfigError, match="max_total_tokens"):
        settle(replace(GPU, free_memory=None))


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({"max_running_requests": 1}, (1,)),
        ({"max_running_requests": 5}, (1, 2, 4, 5)),
        ({"max_running_requests": 20}, (1, 2, 4, 8, 16, 20)),
        ({"cuda_graph_max_bs": 8}, (1, 2, 4, 8)),
        ({"disable_cuda_graph": True}, ()),
    ],
)
def test_decoding_steps_are_captured_up_to_what_may_run(given: dict[str, object], sizes: tuple[int, ...]):
    assert settle(GPU, **given).graph_sizes == sizes
    assert settle(**given).graph_sizes == (), "the cpu has no graphs"


def test_every_number_of_rows_has_a_graph_that_is_at_most_an_eighth_larger_or_eight_rows():
    sizes = settle(GPU).graph_sizes
    assert sizes[-1] == 256 and list(sizes) == sorted(set(sizes))
    for rows in range(1, 257):
        size = min(size for size in sizes if size >= rows)
        assert size - rows < max(8, rows / 8 + 1)
