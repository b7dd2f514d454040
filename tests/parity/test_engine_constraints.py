"""Constraints in a real engine: jump-forward on and off, closing in time, reasoning, refusals; nobody else waits."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_engines import tiny_engine
from tiny_models import make_checkpoint

from sglite import Engine
from sglite.runtime.engine.engine import RequestRefused
from sglite.runtime.sample.params import InvalidParameter

PROMPT = "the quick brown fox"
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["longer value", "shorter"]},
        "note": {"type": "string", "maxLength": 40},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["kind", "note", "n"],
    "additionalProperties": False,
}
BRANCHES = r"(red|green|blue) box (left|right) of the (door|window)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("constraints") / "model", seed=2, max_position_embeddings=4096)


@pytest.fixture(scope="module", params=[True, False], ids=["overlap", "sync"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with tiny_engine(folder, disable_overlap_schedule=not request.param) as engine:
        yield engine


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Engine]:
    """Without jump-forward."""
    with tiny_engine(folder, jump_forward=False) as engine:
        yield engine


def asked(constraint: dict[str, Any], **sampling: Any) -> dict[str, Any]:
    return {"max_new_tokens": 120, "temperature": 0, **constraint, **sampling}


# --- jump-forward ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constraint", [{"json_schema": SCHEMA}, {"regex": BRANCHES}, {"choice": ["left", "right"]}])
def test_output_is_the_same_without_jump_forward(engine: Engine, plain: Engine, constraint: dict[str, Any]) -> None:
    params = [asked(constraint)] + [asked(constraint, temperature=1.0, seed=seed) for seed in range(6)]
    jumping = engine.generate([PROMPT] * len(params), params)
    sampling = plain.generate([PROMPT] * len(params), params)
    for one, other in zip(jumping, sampling, strict=True):
        assert one["output_ids"] == other["output_ids"]
        assert one["meta_info"]["forced_tokens"] > 0 == other["meta_info"]["forced_tokens"]
        assert one["meta_info"]["masks_filled"] < other["meta_info"]["masks_filled"]
    passes = [sum(result["meta_info"]["forward_passes"] for result in results) for results in (jumping, sampling)]
    assert passes[0] < passes[1]


def test_the_distribution_at_choices_is_the_same_without_jump_forward(engine: Engine, plain: Engine) -> None:
    """Chi-square of homogeneity over independent seeds, for every choice the pattern leaves."""
    n = 150
    seen: list[list[Counter[str]]] = []
    for which, first in ((engine, 0), (plain, n)):
        params = [asked({"regex": BRANCHES}, temperature=1.0, seed=first + i) for i in range(n)]
        texts = [result["text"] for result in which.generate([PROMPT] * n, params)]
        matches = [re.fullmatch(BRANCHES, text) for text in texts]
        seen.append([Counter(match[group] for match in matches if match) for group in (1, 2, 3)])
        assert sum(seen[-1][0].values()) == n
    for ours, theirs in zip(*seen, strict=True):
        pooled = ours + theirs
        statistic = sum((ours[word] - theirs[word]) ** 2 / total for word, total in pooled.items())
        assert statistic < {1: 15.1, 2: 18.4}.get(len(pooled) - 1, 0.1), (ours, theirs)  # p = 0.0001


# --- values that are checked at their end ------------------------------------------------------------------------


def test_a_value_that_cannot_end_right_is_taken_back_and_its_text_never_shown(engine: Engine, plain: Engine) -> None:
    """No item twice: the second one is known to be the first again only when it ends."""
    item = {
        "type": "object",
        "properties": {"k": {"enum": [1, 2, 3]}},
        "required": ["k"],
        "additionalProperties": False,
    }
    schema = {"type": "array", "items": item, "uniqueItems": True, "minItems": 3, "maxItems": 3}
    resampled = 0
    for seed in range(6):
        params = asked({"json_schema": schema}, temperature=1.0, seed=seed)
        shown = ""
        for event in engine.generate(PROMPT, params, return_logprob=True, stream=True):
            assert event["text"].startswith(shown)
            assert len(event["meta_info"]["output_token_logprobs"]) == len(event["output_ids"])
            shown = event["text"]
        assert sorted(one["k"] for one in json.loads(shown)) == [1, 2, 3]
        assert event["output_ids"] == plain.generate(PROMPT, params)["output_ids"]
        resampled += event["meta_info"]["resampled_tokens"]
    assert resampled > 0


# --- closing, reasoning ------------------------------------------------------------------------------------------


def test_closing_makes_every_answer_valid(engine: Engine) -> None:
    limits = range(30, 60, 6)
    params = [asked({"json_schema": SCHEMA}, max_new_tokens=n, on_limit="close", temperature=1.0) for n in limits]
    for limit, result in zip(limits, engine.generate([PROMPT] * len(params), params), strict=True):
        value = json.loads(result["text"])
        meta = result["meta_info"]
        assert len(result["output_ids"]) <= limit and meta["constraint_complete"] is True
        assert set(value) == {"kind", "note", "n"} and len(value["note"]) <= 40
        assert set(meta["constraint_filled"]) <= {"", "/kind", "/note", "/n"}
    with pytest.raises(RequestRefused, match=r"max_new_tokens>=\d+"):
        engine.generate(PROMPT, asked({"json_schema": SCHEMA}, max_new_tokens=4, on_limit="close"))
    with pytest.raises(InvalidParameter, match="on_limit='close' needs one of"):
        engine.generate(PROMPT, {"on_limit": "close"})


def test_a_constraint_begins_after_the_reasoning(engine: Engine) -> None:
    assert engine.tokenizer is not None
    free = engine.generate(PROMPT, {"temperature": 0, "max_new_tokens": 20, "ignore_eos": True})["output_ids"]
    end = free[9:10]
    at = free.index(end[0]) + 1
    text = engine.tokenizer.decode(end)
    for after in (end, text) if engine.tokenizer.encode(text) == end else (end,):
        result = engine.generate(PROMPT, asked({"regex": "[0-9]{4}"}), constraint_after=after)
        assert result["output_ids"][:at] == free[:at]
        said = engine.tokenizer.decode(result["output_ids"][at:])
        assert re.fullmatch("[0-9]{4}", said) and result["meta_info"]["constraint_complete"]
    short = engine.generate(PROMPT, asked({"regex": "[0-9]{4}"}), constraint_after=end, reasoning_budget=2)
    assert short["output_ids"][:3] == [*free[:2], *end] or at < 3
    for fields, name in (
        ({"reasoning_budget": 2}, "reasoning_budget"),
        ({"constraint_after": [], "sampling": {"regex": "a"}}, "constraint_after"),
        ({"constraint_after": [5]}, "constraint_after"),
        ({"constraint_after": [10**6], "sampling": {"regex": "a"}}, "constraint_after"),
    ):
        with pytest.raises(InvalidParameter, match=name):
            engine.generate(PROMPT, fields.pop("sampling", {}), **fields)


# --- refusals and bystanders -------------------------------------------------------------------------------------


def test_what_provably_cannot_be_is_refused_naming_both(engine: Engine) -> None:
    with pytest.raises(InvalidParameter, match="min_new_tokens=9 and choice exclude each other"):
        engine.generate(PROMPT, asked({"choice": ["left", "right"]}, min_new_tokens=9))
    assert engine.tokenizer is not None
    (digit,) = engine.tokenizer.encode("7")
    with pytest.raises(RequestRefused, match="allowed_token_ids"):
        engine.generate(PROMPT, asked({"regex": "[a-z]+"}, allowed_token_ids=[digit]))


def nested(depth: int) -> dict[str, Any]:
    """Choices inside choices: its size doubles with every level."""
    if depth == 0:
        return {"type": "string", "maxLength": 60}
    inner = nested(depth - 1)
    wrapped = {"type": "object", "properties": {"a": inner}, "required": ["a"], "additionalProperties": False}
    return {"oneOf": [wrapped, {"type": "array", "items": inner}]}


def bombs() -> list[dict[str, Any]]:
    """Constraints of which each takes a while to compile, or is found to be too much."""
    patterns = [{"pattern": f"a.{{{i}}}b"} for i in range(1, 8)]
    properties = {f"p{i}": {"type": "string", "pattern": f"^[a-z]{{1,{i}}}x$", "maxLength": 20} for i in range(1, 60)}
    schemas = [nested(8), {"type": "string", "allOf": patterns}, {"type": "object", "properties": properties}]
    return [{"regex": "((a{1,60}b?){1,60}c?){1,60}"}, *({"json_schema": schema} for schema in schemas)]


def test_no_step_is_late_while_pathological_constraints_compile(folder: Path) -> None:
    """Eight streams go on, half of them constrained; a bad schema is refused at once all the while."""
    with tiny_engine(folder, grammar_timeout_s=5.0) as engine:
        streams = [asked({"regex": "[a-z ]{30}"} if i % 2 else {"ignore_eos": True}) for i in range(8)]
        engine.generate([PROMPT] * 8, streams)
        slowest: list[float] = []

        def explode() -> None:
            for constraint in bombs():
                started = time.monotonic()
                with contextlib.suppress(RequestRefused):
                    engine.generate(PROMPT, asked(constraint, max_new_tokens=1))
                slowest.append(time.monotonic() - started)

        thread = threading.Thread(target=explode)
        thread.start()
        while True:
            engine.generate([PROMPT] * 8, streams)
            with pytest.raises(RequestRefused, match="/type"):
                engine.generate(PROMPT, {"json_schema": {"type": "bogus"}})
            if not thread.is_alive():
                break
        assert len(slowest) == len(bombs()) and max(slowest) < 20
        info = engine.get_server_info()
        assert info["late_steps"] == 0 and info["totals"]["masks_filled"] > 100


def test_what_carries_constraints_out_is_told_with_its_origin(plain: Engine) -> None:
    config = plain.get_server_info()["config"]
    assert config["jump_forward"] == {"value": False, "origin": "argument"}
    assert config["grammar_backend"]["origin"] == "default"
