"""``sglite bench serve|prefix|json|tools``: load on a server, and a table of what came of it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sglite.cli_parser import Parser, UsageError, after_dashes
from sglite.cli_server import server

if TYPE_CHECKING:
    from sglite.bench.tasks import Results

TASKS = {
    "serve": "unrelated prompts: throughput and latency",
    "prefix": "prompts that begin alike: how much the cache saves",
    "json": "answers with a schema enforced, and free: validity and steps a token",
    "tools": "calls that must be made: do they fit the tools' schemas",
}
ROUTES = {"generate": "/generate", "chat": "/v1/chat/completions", "completions": "/v1/completions"}
_TIMEOUT_SECONDS = 600.0


def bench(argv: Sequence[str]) -> int:
    """The command; 1 where nothing was answered, or where what must be valid is not."""
    words, flags = after_dashes(argv)
    if not words or words[0] not in TASKS:
        if words and words[0] in ("-h", "--help"):
            width = max(map(len, TASKS))
            print("usage: sglite bench TASK [MODEL | --url URL] [FLAGS]\n\ntasks:")
            print("\n".join(f"  {name:<{width}}  {said}" for name, said in TASKS.items()))
            print("\nsglite bench TASK --help says more.")
            return 0
        raise UsageError(f"say what to measure: {', '.join(TASKS)}" + (f"; got {words[0]!r}" if words else ""))
    given = _checked(_parser(words[0]).read(words[1:]))
    import asyncio
    import secrets

    if given.seed is None:
        # the same requests again would be found in the server's cache
        given.seed = secrets.randbelow(1 << 31)
    with server(given.url, given.model, flags) as url:
        results = asyncio.run(_measure(words[0], given, url))
    if given.json:
        print(json.dumps({"task": words[0], "url": url, "settings": _settings(given), "results": results}))
    else:
        from sglite.bench.summary import table

        print(table(results))
        print(f"seed {given.seed}")
    return _code(words[0], results)


def _parser(task: str) -> Parser:
    lengths = {"serve": (128, 64), "prefix": (32, 16), "json": (0, 256), "tools": (8, 256)}[task]
    parser = Parser(
        prog=f"sglite bench {task}",
        usage=f"sglite bench {task} [MODEL | --url URL] [FLAGS] [-- FLAGS OF sglite serve]",
        description=TASKS[task][0].upper() + TASKS[task][1:] + ".",
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="served for the measurement; default: the bundled model")
    add("--url", help="a running server, in place of MODEL")
    add("--api-key", metavar="KEY", help="for --url; default: $SGLITE_API_KEY")
    add("--num-requests", type=int, default=64, metavar="INT", help="(default: 64)")
    add("--concurrency", type=int, metavar="INT", help="at most so many at a time (default: 8; with a rate: no bound)")
    add("--request-rate", type=float, metavar="FLOAT", help="requests a second, sent at random times, whoever waits")
    add("--output-tokens", type=int, default=lengths[1], metavar="INT", help=f"(default: {lengths[1]})")
    add("--seed", type=int, metavar="INT", help="of the requests and when they are sent; default: another each time")
    add("--flush-cache", action="store_true", help="have the server forget what it cached first")
    add("--json", action="store_true", help="the figures as one JSON object")
    if task != "json":
        add("--input-tokens", type=int, default=lengths[0], metavar="INT", help=f"(default: {lengths[0]})")
    if task in ("serve", "prefix"):
        add(
            "--route", choices=list(ROUTES), default="generate", help="(default: generate: exact lengths, by token ids)"
        )
    if task != "serve":
        add("--served-model", metavar="NAME", help="which of the server's models; default: its first")
    if task == "serve":
        add("--served-model", metavar="NAME", help="for chat and completions; default: the server's first")
        add(
            "--spread",
            type=float,
            default=0.0,
            metavar="FLOAT",
            help="lengths vary downwards by this share (default: 0)",
        )
        add("--stop-at-eos", action="store_true", help="answers may end before --output-tokens")
    if task == "prefix":
        add("--groups", type=int, default=8, metavar="INT", help="different beginnings (default: 8)")
        add("--prefix-tokens", type=int, default=256, metavar="INT", help="length of a beginning (default: 256)")
    if task == "tools":
        add("--num-tools", type=int, default=4, metavar="INT", help="offered with a request (default: 4)")
    return parser


def _checked(given: argparse.Namespace) -> argparse.Namespace:
    least = {"num_requests": 1, "concurrency": 1, "output_tokens": 1, "input_tokens": 1, "groups": 1, "num_tools": 1}
    for name, low in {**least, "prefix_tokens": 0}.items():
        value = getattr(given, name, None)
        if value is not None and value < low:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {low}, got {value}")
    if given.request_rate is not None and not 0 < given.request_rate < float("inf"):
        raise UsageError(f"--request-rate must be positive, got {given.request_rate}")
    if not 0 <= getattr(given, "spread", 0.0) <= 1:
        raise UsageError(f"--spread must be between 0 and 1, got {given.spread}")
    return given


async def _measure(task: str, given: argparse.Namespace, url: str) -> Results:
    from sglite.bench import tasks
    from sglite.bench.load import Pace
    from sglite.bench.wire import Server

    concurrency = given.concurrency or (8 if given.request_rate is None else None)
    pace = Pace(concurrency, given.request_rate, given.seed)
    sizes = tasks.Sizes(
        requests=given.num_requests,
        input_tokens=getattr(given, "input_tokens", 0),
        output_tokens=given.output_tokens,
        spread=getattr(given, "spread", 0.0),
        seed=given.seed,
    )
    key = given.api_key or os.environ.get("SGLITE_API_KEY")
    async with Server(url, key, given.served_model, _TIMEOUT_SECONDS, concurrency or given.num_requests) as found:
        if given.flush_cache and not await found.flush():
            print("sglite bench: note: the server did not flush its cache", file=sys.stderr)
        if task == "serve":
            return await tasks.serve(found, pace, sizes, ROUTES[given.route], not given.stop_at_eos)
        if task == "prefix":
            return await tasks.prefix(found, pace, sizes, ROUTES[given.route], given.groups, given.prefix_tokens)
        if task == "json":
            return await tasks.constrained_json(found, pace, sizes)
        return await tasks.forced_tools(found, pace, sizes, given.num_tools)


def _settings(given: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(given).items() if name not in ("api_key", "json", "url")}


def _code(task: str, results: Results) -> int:
    if any(found["completed"] == 0 for found in results.values()):
        return 1
    held = {"json": "constrained", "tools": "tools"}.get(task)
    return 0 if held is None or results[held]["valid_share"] == 1 else 1
