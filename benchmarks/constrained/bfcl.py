"""Forward passes a token under constraints: ``python -m benchmarks.constrained.bfcl``.

A scripted model writes the gold calls of the tool set, ``{"name": ..., "arguments": {...}}`` under the schema of the
choice among its tools, and the valid instances of the maskbench sample under theirs. Each is run compact and with
fixed spacing, with the step loop in step with the model and overlapping it. Free generation costs 1.0 a token.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from benchmarks.constrained.cases import write
from benchmarks.constrained.everyday import in_order, parameters_of
from benchmarks.constrained.replay import Answer, Costs, replay_engine
from benchmarks.constrained.shared import Shared, add_arguments, load_shared
from sglite.constrained.spec import ConstraintSpec, Whitespace

SPACINGS: tuple[Whitespace, ...] = ("compact", "fixed")


def choice_schema(item: dict[str, Any]) -> dict[str, Any]:
    """One of the item's tools, called by name."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["function"]["name"]}, "arguments": tool["function"]["parameters"]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in item["tools"]
    ]
    return {"anyOf": calls}


def tool_answers(items: Sequence[dict[str, Any]], whitespace: Whitespace) -> tuple[list[Answer], int]:
    """Gold calls, and how many are left out because their own schema refuses them."""
    answers, skipped = [], 0
    for item in items:
        spec = ConstraintSpec.json_schema(choice_schema(item), whitespace=whitespace)
        for number, call in enumerate(item["calls"]):
            schema = parameters_of(item, call)
            if schema is None or not Draft202012Validator(schema).is_valid(call["arguments"]):
                skipped += 1
                continue
            value = {"name": call["name"], "arguments": in_order(schema, call["arguments"])}
            answers.append(Answer(f"{item['id']}.{number}", spec, write(value, whitespace)))
    return answers, skipped


def sample_answers(items: Sequence[dict[str, Any]], whitespace: Whitespace) -> list[Answer]:
    """The valid instances of a sample of the harness."""
    return [
        Answer(f"{item['id']}.{number}", spec, write(test["data"], whitespace))
        for item in items
        for spec in [ConstraintSpec.json_schema(item["schema"], whitespace=whitespace)]
        for number, test in enumerate(item["tests"])
        if test["valid"]
    ]


def measure(
    shared: Shared,
    *,
    sets: Sequence[str] = ("bfcl", "maskbench"),
    limit: int = 0,
    modes: Sequence[str] = ("sync", "overlap"),
    jump_forward: bool = True,
) -> dict[str, Costs]:
    """Costs by ``set/spacing/mode``. ``limit`` counts items of a set."""
    vocab = shared.vocabulary()
    found = {}
    for name in sets:
        items = shared.tools(limit) if name == "bfcl" else shared.split("dev")[: limit or None]
        for whitespace in SPACINGS:
            if name == "bfcl":
                answers, skipped = tool_answers(items, whitespace)
                print(f"bfcl {whitespace}: {skipped} gold calls left out, not valid", file=sys.stderr)
            else:
                answers = sample_answers(items, whitespace)
            for mode in modes:
                compiler = shared.compiler(vocab)
                overlap = mode == "overlap"
                with replay_engine(vocab, compiler, overlap=overlap, jump_forward=jump_forward) as engine:
                    found[f"{name}/{whitespace}/{mode}"] = engine.replay(answers)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--limit", type=int, default=0, help="items of each set; 0: all")
    parser.add_argument("--sets", nargs="+", choices=("bfcl", "maskbench"), default=["bfcl", "maskbench"])
    parser.add_argument("--modes", nargs="+", choices=("sync", "overlap"), default=["sync", "overlap"])
    parser.add_argument("--no-jump-forward", action="store_true")
    parser.add_argument("--items", action="store_true", help="one line an answer")
    parser.add_argument("--json", type=Path, help="write everything there")
    arguments = parser.parse_args()
    found = measure(
        load_shared(arguments),
        sets=arguments.sets,
        limit=arguments.limit,
        modes=arguments.modes,
        jump_forward=not arguments.no_jump_forward,
    )
    for name, costs in found.items():
        for cost in costs.costs:
            if cost.problem or arguments.items:
                counts = (
                    f"{cost.forward_passes} passes for {cost.completion_tokens} tokens, {cost.forced_tokens} forced"
                )
                print(f"  {name} {cost.name}: {cost.problem or counts}")
        print(f"{name}: {json.dumps(costs.summary())}")
    if arguments.json is not None:
        rows = {name: [vars(cost) for cost in costs.costs] for name, costs in found.items()}
        arguments.json.write_text(json.dumps(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
