"""Models with sliding windows in an engine that has few frames for those layers: the same tokens, whatever was lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from model_families import make_family
from tiny_models import VOCAB_SIZE

from sglite import Engine

SAMPLING = {"temperature": 0, "max_new_tokens": 10, "ignore_eos": True}
SIZES: dict[str, Any] = {"skip_tokenizer_init": True, "max_running_requests": 2, "page_size": 4}
FEW: dict[str, Any] = {**SIZES, "max_prefill_tokens": 24, "max_total_tokens": 2048}


def prompt(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB_SIZE), k=length)


def prompts() -> list[list[int]]:
    """Trunks that are long gone from the windows when somebody branches off, and some that are not."""
    trunk = prompt(70, 1)
    branches = [trunk[:cut] + prompt(12, seed) for seed, cut in enumerate([70, 33, 70, 9, 61], start=2)]
    return [*branches, prompt(40, 11)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gemma3", {}),
        ("gpt_oss", {"disable_overlap_schedule": True, "chunked_prefill_size": 7}),
        ("mistral", {"chunked_prefill_size": 7}),
        ("qwen3-window", {"disable_overlap_schedule": True}),
    ],
    ids=str,
)
def test_few_frames_give_the_tokens_of_many(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    folder = make_family(name, tmp_path)
    with Engine(folder, disable_radix_cache=True, **SIZES, max_total_tokens=200) as plain:
        assert plain.config.num_frames == 0, "too few pages to be worth it"
        expected = [plain.generate(input_ids=ids, sampling_params=SAMPLING)["output_ids"] for ids in prompts()]
    with Engine(folder, **FEW, **options) as engine:
        assert 0 < engine.config.num_frames < engine.config.num_pages // 4
        for order in (prompts(), prompts()[::-1]):
            one_by_one = [engine.generate(input_ids=ids, sampling_params=SAMPLING) for ids in order]
            wanted = expected if order == prompts() else expected[::-1]
            assert [result["output_ids"] for result in one_by_one] == wanted
        together = engine.generate(input_ids=prompts() * 2, sampling_params=SAMPLING)
        assert [result["output_ids"] for result in together] == expected * 2
        frames = engine.get_server_info()["frames"]
        assert frames["taken_away"] > 0 == frames["used"] and frames["free"] + frames["idle"] == frames["total"]
    assert any(result["meta_info"]["replayed_tokens"] > 4 for result in one_by_one), "nothing was ever lost"
    assert any(result["meta_info"]["cached_tokens"] > 0 for result in together), "nothing was ever found"
