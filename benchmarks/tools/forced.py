"""Calls that a model without sense is made to write: ``python -m benchmarks.tools.forced``.

The model's weights are random, the tools are those of the shared set, and ``tool_choice`` is ``required`` or names one.
Whatever the wire format, whole or streamed, every call must have a name of the request and arguments that are valid
under its schema. Requests go through the server's own application, without sockets. A turn that the limit cuts off is
right only where the shortest one does not fit: the same request that insists on an end must be refused with the limit
it needs, and be whole with it. ``--calls`` is how many requests each format gets; ``--formats`` takes a part of them.
Ends with 1 when a call was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from jsonschema import Draft202012Validator

import sglite as sgl
from benchmarks.constrained.shared import DEFAULT as FOLDER
from benchmarks.constrained.shared import Shared, add_arguments
from sglite.runtime.parse.registry import TOOL_FORMATS
from sglite.runtime.serve.app import create_app
from sglite.runtime.serve.options import ServeOptions

ROUTE = "/v1/chat/completions"
PROMPT = [{"role": "user", "content": "Go."}]
SHOWN = 6
_NEEDED = re.compile(r"give max_new_tokens>=([0-9]+)")
_MORE = 40
"""Tokens beyond the shortest turn, where that is longer than the limit."""


@dataclass
class Found:
    """What came of the requests of one format."""

    requests: int = 0
    whole: int = 0
    """Turns in which everything was as it should be."""
    calls: int = 0
    longer: int = 0
    """Turns whose shortest text did not fit, asked for again with a limit that it fits into."""
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def failed(self, message: str, body: dict[str, Any]) -> None:
        """No answer: refused before it began, or broken, which is wrong."""
        if message.startswith("400 "):
            self.refused[message] += 1
        else:
            self.wrong.append(f"{message}\n        {json.dumps(body)}")


@dataclass(frozen=True)
class Turn:
    """An answer: calls as (name, arguments), and why it ended."""

    calls: list[tuple[str, str]]
    content: str
    finish: str
    tokens: int


def body_of(line: dict[str, Any], rng: random.Random, limit: int) -> dict[str, Any]:
    """A request with the tools of ``line``."""
    seen: dict[str, Any] = {tool["function"]["name"]: tool for tool in line["tools"]}
    names = sorted(seen)
    choice: Any = "required"
    if rng.random() < 0.5:
        choice = {"type": "function", "function": {"name": rng.choice(names)}}
    return {
        "messages": PROMPT,
        "tools": [{**tool, "function": {**tool["function"], "strict": rng.random() < 0.5}} for tool in seen.values()],
        "tool_choice": choice,
        "parallel_tool_calls": rng.random() < 0.5,
        "temperature": 1.0,
        "seed": rng.randrange(2**31),
        "max_tokens": limit,
        "stream": rng.random() < 0.5,
        # What random weights are told does not matter: a short prompt in place of the tools' texts.
        "input_ids": [1 + rng.randrange(200) for _ in range(4)],
    }


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Turn | str:
    """The answer, or why there is none."""
    answer = await client.post(
        ROUTE, json={**body, "stream_options": {"include_usage": True}} if body["stream"] else body
    )
    if answer.status_code != 200:
        return f"{answer.status_code} {answer.json()['error']['message']}"
    if body["stream"]:
        return put_together([json.loads(x[6:]) for x in answer.text.split("\n\n") if x.startswith("data: {")])
    choice, usage = answer.json()["choices"][0], answer.json()["usage"]
    functions = [call["function"] for call in choice["message"].get("tool_calls", [])]
    calls = [(one["name"], one["arguments"]) for one in functions]
    return Turn(calls, choice["message"]["content"] or "", choice["finish_reason"], usage["completion_tokens"])


def put_together(chunks: Sequence[dict[str, Any]]) -> Turn | str:
    """The turn that ``chunks`` are pieces of."""
    calls: dict[int, list[str]] = {}
    content, finish, tokens = "", "", 0
    for chunk in chunks:
        if "error" in chunk:
            return f"event {chunk['error']['message']}"
        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        for choice in chunk["choices"]:
            content += choice["delta"].get("content") or ""
            finish = choice["finish_reason"] or finish
            for part in choice["delta"].get("tool_calls") or []:
                made = calls.setdefault(part["index"], ["", ""])
                made[0] += part["function"].get("name") or ""
                made[1] += part["function"].get("arguments") or ""
    return Turn([(name, arguments) for name, arguments in (calls[i] for i in sorted(calls))], content, finish, tokens)


def faults(body: dict[str, Any], turn: Turn) -> list[str]:
    """What is wrong with a turn that was not cut."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in body["tools"]}
    choice, found = body["tool_choice"], []
    wanted = set(schemas) if choice == "required" else {choice["function"]["name"]}
    if not turn.calls:
        found.append(f"no call, but {turn.content[:80]!r}")
    if len(turn.calls) > 1 and (choice != "required" or not body["parallel_tool_calls"]):
        found.append(f"{len(turn.calls)} calls where one was asked for")
    if turn.content.strip():
        found.append(f"content beside the calls: {turn.content[:80]!r}")
    if turn.finish != "tool_calls":
        found.append(f"finish_reason {turn.finish!r}")
    for name, arguments in turn.calls:
        if name not in wanted:
            found.append(f"called {name!r}")
            continue
        try:
            errors = [e.message for e in Draft202012Validator(schemas[name]).iter_errors(json.loads(arguments))]
        except ValueError as error:
            errors = [str(error)]
        found += [f"{name}({arguments[:200]}): {message[:200]}" for message in errors[:1]]
    return found


async def ask_until_whole(client: httpx.AsyncClient, body: dict[str, Any], found: Found) -> Turn | str:
    """The answer under a limit that has room for one."""
    turn = await ask(client, body)
    if isinstance(turn, str) or turn.finish != "length":
        return turn
    refusal = await ask(client, {**body, "on_limit": "close"})
    needed = _NEEDED.search(refusal) if isinstance(refusal, str) else None
    if needed is None or int(needed[1]) <= body["max_tokens"]:
        return f"cut off, though there was room: {turn.calls or turn.content}, and then {refusal}"
    found.longer += 1
    return await ask(client, {**body, "max_tokens": int(needed[1]) + _MORE})


async def ask_format(
    engine: sgl.Engine, name: str, lines: Sequence[dict[str, Any]], given: argparse.Namespace
) -> Found:
    """``given.calls`` requests in one format, ``given.at_once`` at a time."""
    found, rng = Found(), random.Random(f"{name} {given.seed}")
    app = create_app(engine, ServeOptions(tool_call_parser=name, reasoning_parser="none"))
    bodies = iter([body_of(rng.choice(lines), rng, given.max_tokens) for _ in range(given.calls)])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:

        async def work() -> None:
            for body in bodies:
                turn = await ask_until_whole(client, body, found)
                found.requests += 1
                if isinstance(turn, str):
                    found.failed(turn, body)
                    continue
                found.tokens += turn.tokens
                found.calls += len(turn.calls)
                problems = faults(body, turn)
                found.whole += not problems
                found.wrong += [f"{problem}\n        {json.dumps(body)}" for problem in problems]

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(given.at_once)))
        found.seconds = time.perf_counter() - start
    return found


def tell(name: str, found: Found) -> None:
    """One line of the table, and what was not as it should be."""
    refused = sum(found.refused.values())
    print(
        f"{name:14} {found.requests:8} {found.whole:6} {found.calls:7} {len(found.wrong):6} {refused:8} "
        f"{found.longer:7} {found.tokens:9} {found.seconds:8.0f}",
        flush=True,
    )
    for problem in found.wrong[:SHOWN]:
        print(f"    wrong: {problem}")
    for reason, count in found.refused.most_common(SHOWN):
        print(f"    refused, {count} x {reason[:300]}")


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--calls", type=int, default=715, help="requests of each format")
    parser.add_argument("--formats", nargs="+", default=[form.name for form in TOOL_FORMATS], help="names; else all")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--at-once", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="a folder with a checkpoint whose weights are not read; else the bundled one")
    given = parser.parse_args()
    lines = Shared(given.shared or FOLDER).tools()
    if not lines:
        sys.exit("no tools: name the shared folder with --shared")
    wrong = asked = whole = calls = 0
    heads = ("requests", 8), ("whole", 6), ("calls", 7), ("wrong", 6), ("refused", 8), ("longer", 7), ("tokens", 9)
    print(f"{'format':14} " + " ".join(f"{head:>{width}}" for head, width in (*heads, ("seconds", 8))))
    # What is asked is whether calls are right: compiling may wait for as long as others keep the machine busy.
    patience = 300.0
    with sgl.Engine(
        given.model,
        load_format="dummy",
        dtype="float32",
        num_threads=1,
        grammar_timeout_s=patience,
        show_progress=False,
    ) as engine:
        for name in given.formats:
            found = await ask_format(engine, name, lines, given)
            tell(name, found)
            wrong, asked = wrong + len(found.wrong), asked + found.requests
            whole, calls = whole + found.whole, calls + found.calls
    print(f"{whole} of {asked} turns whole, {calls} calls, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
