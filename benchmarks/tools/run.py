"""Tool calls in every wire format, over the shared set of tools: ``python -m benchmarks.tools.run``.

Three questions, asked of each format. Does the constraint of every distinct tool compile, and how long does it take?
Is every gold call that is valid under its own schema accepted by its constraint, in the schema's order of properties
and in any order, and what does a mask cost? Is it read back, whatever the text is cut into? ``--limit`` takes a part.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jsonschema import Draft202012Validator

from benchmarks.constrained.shared import Shared, add_arguments, load_shared
from sglite.constrained.compiler import CompiledConstraint, ConstraintCompiler
from sglite.constrained.spec import ORDERS, ConstraintError, ConstraintRefused, ConstraintSpec, Order
from sglite.constrained.vocab import Vocabulary
from sglite.runtime.parse.base import Call, CallArguments, CallEnd, CallStart, Content, Tool, ToolFormat
from sglite.runtime.parse.registry import TOOL_FORMATS

PARTS = ("schemas", "calls", "parse")
PIECES: dict[str, tuple[int, int]] = {"1": (1, 1), "1-4": (1, 4), "4-16": (4, 16), "32": (32, 32), "whole": (0, 0)}
"""Characters of a piece, from and to; (0, 0) is all of the text."""
CONTENT = "Let me see."
SHOWN = 5


@dataclass(frozen=True)
class Item:
    """Tools, and the gold calls that are valid under their own schemas."""

    name: str
    tools: tuple[Tool, ...]
    calls: tuple[Call, ...]


@dataclass
class Found:
    """What came of one question; a line for everything that is not as it should be."""

    asked: int = 0
    right: int = 0
    times: list[float] = field(default_factory=list)
    masks: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def row(self) -> str:
        parts = [f"{self.right} of {self.asked}"]
        if self.times:
            p50, p95, most = (1e3 * x for x in np.quantile(self.times, [0.5, 0.95, 1]))
            parts.append(f"compile p50 {p50:.1f} p95 {p95:.1f} max {most:.0f} ms")
        if self.masks:
            p50, p99 = (1e6 * x for x in np.quantile(self.masks, [0.5, 0.99]))
            parts.append(f"mask mean {1e6 * float(np.mean(self.masks)):.0f} p50 {p50:.0f} p99 {p99:.0f} us")
        return ", ".join(parts)


def items_of(shared: Shared) -> list[Item]:
    """Everything in the set; calls that their own schema refuses are left out."""
    found = []
    for line in shared.tools():
        functions = [tool["function"] for tool in line["tools"]]
        tools = tuple(Tool(each["name"], each["parameters"], each.get("description", "")) for each in functions)
        schemas = {tool.name: tool.parameters for tool in tools}
        calls = tuple(
            Call(call["name"], call["arguments"])
            for call in line["calls"]
            if call["name"] in schemas and Draft202012Validator(schemas[call["name"]]).is_valid(call["arguments"])
        )
        found.append(Item(line["id"], tools, calls))
    return found


def spec_of(form: ToolFormat, tools: Sequence[Tool], several: bool, order: Order = "schema") -> ConstraintSpec:
    tag = {"type": "structural_tag", "format": form.calls(tools, several=several)}
    return ConstraintSpec.structural_tag(tag, order=order)


def timed(compiler: ConstraintCompiler, spec: ConstraintSpec, found: Found) -> CompiledConstraint:
    start = time.perf_counter()
    compiled = compiler.compile(spec)
    found.times.append(time.perf_counter() - start)
    return compiled


def ask_schemas(form: ToolFormat, tools: Sequence[Tool], compiler: ConstraintCompiler) -> Found:
    """One call of each tool."""
    found = Found()
    for tool in tools:
        found.asked += 1
        try:
            timed(compiler, spec_of(form, [tool], several=False), found)
            found.right += 1
        except (ConstraintError, ConstraintRefused) as error:
            found.problems.append(f"{tool.name}: {error}")
    return found


def ask_calls(
    form: ToolFormat, items: Sequence[Item], compiler: ConstraintCompiler, vocab: Vocabulary, order: Order
) -> Found:
    """The gold calls of each item in one turn, under the constraint of its tools."""
    found, mask = Found(), np.zeros(vocab.words, dtype=np.int32)
    for item in items:
        found.asked += 1
        text = form.write("", item.calls)
        try:
            matcher = timed(compiler, spec_of(form, item.tools, len(item.calls) > 1, order), found).matcher()
        except (ConstraintError, ConstraintRefused) as error:
            found.problems.append(f"{item.name}: {error}")
            continue
        taken = 0
        for id_ in vocab.encode(text):
            start = time.perf_counter()
            matcher.fill(mask)
            found.masks.append(time.perf_counter() - start)
            if not matcher.accept(id_):
                break
            taken += len(vocab.token_bytes[id_] or b"")
        if taken == len(text.encode()) and matcher.accepting:
            found.right += 1
        else:
            found.problems.append(f"{item.name}: not accepted after {text.encode()[:taken].decode(errors='replace')!r}")
    return found


def ask_parse(form: ToolFormat, items: Sequence[Item], low: int, high: int) -> Found:
    """Each turn, with content before the calls, in pieces of ``low`` to ``high`` characters."""
    found, rng = Found(), random.Random(0)
    for item in items:
        found.asked += 1
        text = form.write(CONTENT, item.calls)
        content, calls = read(form, item.tools, pieces_of(text, low or len(text), high or len(text), rng))
        wanted = [(call.name, json.dumps(call.arguments)) for call in item.calls]
        if content == CONTENT and calls == wanted:
            found.right += 1
        else:
            found.problems.append(f"{item.name}: {content!r} {calls} and not {wanted}")
    return found


def pieces_of(text: str, low: int, high: int, rng: random.Random) -> Iterator[str]:
    at = 0
    while at < len(text):
        size = rng.randint(low, high)
        yield text[at : at + size]
        at += size


def read(form: ToolFormat, tools: Sequence[Tool], pieces: Iterator[str]) -> tuple[str, list[tuple[str, str]]]:
    """Content, and the calls that ended, their arguments written anew."""
    parser = form.parser(tools)
    events = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
    names = {event.index: event.name for event in events if isinstance(event, CallStart)}
    texts: dict[int, str] = dict.fromkeys(names, "")
    for event in events:
        if isinstance(event, CallArguments):
            texts[event.index] += event.text
    ended = [event.index for event in events if isinstance(event, CallEnd)]
    content = "".join(event.text for event in events if isinstance(event, Content))
    return content, [(names[i], json.dumps(json.loads(texts[i]))) for i in ended]


def tell(title: str, found: Found) -> None:
    print(f"{title:34} {found.row()}", flush=True)
    shown = Counter(problem.split(": ", 1)[-1][:60] for problem in found.problems)
    for kind, count in shown.most_common(SHOWN):
        example = next(each for each in found.problems if kind in each)
        print(f"    {count} x {example[:260]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--formats", nargs="+", help="names; else every one")
    parser.add_argument("--limit", type=int, default=0, help="schemas and turns of each format; 0: all")
    arguments = parser.parse_args()
    shared = load_shared(arguments)
    vocab = shared.vocabulary()
    items = items_of(shared)
    distinct = {(tool.name, json.dumps(tool.parameters)): tool for item in items for tool in item.tools}
    every = random.Random(0)
    tools = every.sample(list(distinct.values()), min(arguments.limit or len(distinct), len(distinct)))
    turns = [item for item in items if item.calls]
    turns = every.sample(turns, min(arguments.limit or len(turns), len(turns)))
    print(f"{len(distinct)} distinct schemas, {sum(len(item.calls) for item in items)} valid gold calls")
    for form in TOOL_FORMATS:
        if arguments.formats and form.name not in arguments.formats:
            continue
        compiler = shared.compiler(vocab)
        compiler.compile(ConstraintSpec.choice(["x"]))
        if "schemas" in arguments.parts:
            tell(f"{form.name} schemas", ask_schemas(form, tools, compiler))
        if "calls" in arguments.parts:
            for order in ORDERS:
                tell(f"{form.name} calls, order {order}", ask_calls(form, turns, compiler, vocab, order))
        if "parse" in arguments.parts:
            for name, (low, high) in PIECES.items():
                tell(f"{form.name} read, pieces of {name}", ask_parse(form, turns, low, high))
        compiler.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
