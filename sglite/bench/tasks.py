"""The four loads of ``sglite bench``: each makes its requests, runs them and says what came of them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglite.bench import data
from sglite.bench.load import Answer, Job, Pace, run
from sglite.bench.summary import share, summary
from sglite.bench.wire import CHAT, COMPLETIONS, NATIVE, Server

Results = dict[str, dict[str, Any]]
"""Runs by name."""


@dataclass(frozen=True)
class Sizes:
    """How many requests and how long; lengths in tokens. ``spread``: lengths vary from ``1 - spread`` of it to all."""

    requests: int
    input_tokens: int
    output_tokens: int
    spread: float = 0.0
    seed: int = 0


async def serve(server: Server, pace: Pace, sizes: Sizes, route: str, ignore_eos: bool) -> Results:
    """Unrelated prompts: throughput and latency."""
    rng = random.Random(f"serve {sizes.seed}")
    make = await _maker(server, route, ignore_eos)
    jobs = []
    for _ in range(sizes.requests):
        given = data.length(rng, sizes.input_tokens, sizes.spread)
        jobs.append(make(rng, [(rng.random(), given)], data.length(rng, sizes.output_tokens, sizes.spread)))
    _, found = await _measured(server, jobs, pace)
    return {"serve": found}


async def prefix(server: Server, pace: Pace, sizes: Sizes, route: str, groups: int, prefix_tokens: int) -> Results:
    """Prompts that begin alike in ``groups``: how much of them is found in the cache.

    ``ideal_cached_share``: had each group's beginning been computed once and nothing else been known before.
    """
    rng = random.Random(f"prefix {sizes.seed}")
    make = await _maker(server, route, True)
    common = [rng.random() for _ in range(groups)]
    order = [index % groups for index in range(sizes.requests)]
    rng.shuffle(order)
    jobs = [
        make(rng, [(common[i], prefix_tokens), (rng.random(), sizes.input_tokens)], sizes.output_tokens) for i in order
    ]
    _, found = await _measured(server, jobs, pace)
    used = min(groups, sizes.requests)
    found["cached_share"] = share(found["cached_tokens"], found["prompt_tokens"])
    found["ideal_cached_share"] = share(
        (sizes.requests - used) * prefix_tokens, sizes.requests * (prefix_tokens + sizes.input_tokens)
    )
    return {"prefix": found}


async def constrained_json(server: Server, pace: Pace, sizes: Sizes) -> Results:
    """The same prompts with their schema enforced, and free: validity, and steps a token."""
    rng = random.Random(f"constrained_json {sizes.seed}")
    free, held = [], []
    model = await server.model()
    for _ in range(sizes.requests):
        wanted = data.schema(rng)
        said = f"Describe a {data.words(rng, 1)} as JSON of this schema and say nothing else: {json.dumps(wanted)}"
        body = _chat(model, said, sizes.output_tokens)
        form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": wanted, "strict": True}}
        free.append(Job(CHAT, body, wanted))
        held.append(Job(CHAT, {**body, "response_format": form}, wanted))
    results = {}
    for name, jobs in (("free", free), ("constrained", held)):
        answers, found = await _measured(server, jobs, pace)
        done = [answer for answer in answers if answer.ok]
        found["valid_share"] = share(sum(_is_valid(answer.text, answer.job.about) for answer in done), len(done))
        found["cut_off"] = sum(answer.finish == "length" for answer in done)
        found["passes_per_token"] = share(found["forward_passes"], found["completion_tokens"])
        found["forced_share"] = share(found["forced_tokens"], found["completion_tokens"])
        results[name] = found
    return results


async def forced_tools(server: Server, pace: Pace, sizes: Sizes, num_tools: int) -> Results:
    """Calls that must be made (``required``, every second time a named one): do they name a tool and fit its schema?"""
    rng = random.Random(f"forced_tools {sizes.seed}")
    model = await server.model()
    jobs = []
    for index in range(sizes.requests):
        offered = data.tools(rng, num_tools)
        named = rng.choice(offered)["function"]["name"] if index % 2 else None
        choice: Any = "required" if named is None else {"type": "function", "function": {"name": named}}
        said = f"Do something with the {data.words(rng, sizes.input_tokens)}."
        body = {**_chat(model, said, sizes.output_tokens), "tools": offered, "tool_choice": choice}
        jobs.append(Job(CHAT, body, (offered, named)))
    answers, found = await _measured(server, jobs, pace)
    done = [answer for answer in answers if answer.ok]
    found["calls"] = sum(len(answer.calls) for answer in done)
    found["valid_share"] = share(sum(_calls_are_valid(answer) for answer in done), len(done))
    found["cut_off"] = sum(answer.finish == "length" for answer in done)
    found["passes_per_token"] = share(found["forward_passes"], found["completion_tokens"])
    return {"tools": found}


async def _measured(server: Server, jobs: Sequence[Job], pace: Pace) -> tuple[list[Answer], dict[str, Any]]:
    before = await server.counters()
    answers, seconds = await run(jobs, server.send, pace)
    return answers, summary(answers, seconds, before, await server.counters())


class _Maker:
    """Makes requests of one route. A prompt is parts, each a seed and a length: equal parts are equal text."""

    def __init__(self, route: str, model: str, vocab_size: int, ignore_eos: bool) -> None:
        self._route, self._model, self._vocab_size, self._ignore_eos = route, model, vocab_size, ignore_eos

    def __call__(self, rng: random.Random, parts: Sequence[tuple[float, int]], output: int) -> Job:
        seeded = [(random.Random(seed), count) for seed, count in parts]
        if self._route == NATIVE:
            ids = [token for part, count in seeded for token in data.token_ids(part, count, self._vocab_size)]
            sampling = {"max_new_tokens": output, "ignore_eos": self._ignore_eos, "temperature": 0.0}
            return Job(NATIVE, {"input_ids": ids, "sampling_params": sampling, "stream": True})
        text = " ".join(data.words(part, count) for part, count in seeded)
        if self._route == CHAT:
            body = _chat(self._model, text, output)
        else:
            body = {**_streamed(self._model, output), "prompt": text}
        return Job(self._route, {**body, **({"ignore_eos": True} if self._ignore_eos else {})})


async def _maker(server: Server, route: str, ignore_eos: bool) -> _Maker:
    if route == NATIVE:
        return _Maker(route, "", await server.vocab_size(), ignore_eos)
    assert route in (CHAT, COMPLETIONS)
    return _Maker(route, await server.model(), 0, ignore_eos)


def _streamed(model: str, output: int) -> dict[str, Any]:
    return {
        "model": model,
        "max_tokens": output,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
    }


def _chat(model: str, said: str, output: int) -> dict[str, Any]:
    return {**_streamed(model, output), "messages": [{"role": "user", "content": said}]}


def _is_valid(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return data.valid(json.loads(text), wanted)
    except (ValueError, RecursionError):
        return False


def _calls_are_valid(answer: Answer) -> bool:
    """At least one call, each of a tool that was offered (of the named one, if one was), with fitting arguments."""
    offered, named = answer.job.about
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in offered}
    return bool(answer.calls) and all(
        call["name"] in schemas
        and named in (None, call["name"])
        and _is_valid(call["arguments"], schemas[call["name"]])
        for call in answer.calls.values()
    )
