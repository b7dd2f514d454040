"""Everyday schemas: do they compile, and are they right? ``python -m benchmarks.constrained.everyday``.

Three sets: what pydantic emits for the types in its documentation, OpenAI's strict subset, and the tool schemas of the
shared folder with their gold calls. Every instance must be accepted, every mutant that ``jsonschema`` calls invalid
must not be. Exit status 1 when anything is wrong; every problem is one line.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from jsonschema import Draft202012Validator

from benchmarks.constrained import everyday_openai, everyday_pydantic
from benchmarks.constrained.cases import Case, Outcome, accepts, check_all, write
from benchmarks.constrained.shared import Shared, add_arguments, load_shared
from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec, Whitespace
from sglite.constrained.vocab import Vocabulary


def check_tools(
    compiler: ConstraintCompiler, vocab: Vocabulary, items: list[dict[str, Any]], whitespace: Whitespace = "fixed"
) -> tuple[Outcome, int]:
    """Every distinct tool schema compiles and every gold call valid under its own schema is accepted. Also counts the
    calls left out because they are not."""
    total, compiled, skipped = Outcome(), {}, 0
    for item in items:
        for tool in item["tools"]:
            schema = tool["function"]["parameters"]
            key = json.dumps(schema)
            if key in compiled:
                continue
            total.schemas += 1
            try:
                compiled[key] = compiler.compile(ConstraintSpec.json_schema(schema, whitespace=whitespace))
                total.compiled += 1
            except (ConstraintError, ConstraintRefused) as error:
                compiled[key] = None
                total.problems.append(f"{item['id']} {tool['function']['name']}: refused: {error}"[:200])
        for call in item["calls"]:
            found = parameters_of(item, call)
            if found is None or not Draft202012Validator(found).is_valid(call["arguments"]):
                skipped += 1
                continue
            constraint = compiled[json.dumps(found)]
            text = write(in_order(found, call["arguments"]), whitespace)
            if constraint is not None and accepts(constraint, vocab, text):
                total.accepted += 1
            else:
                total.problems.append(f"{item['id']} {call['name']}: rejected, and it is valid: {text}"[:200])
    return total, skipped


def parameters_of(item: dict[str, Any], call: dict[str, Any]) -> Any:
    """The schema of the tool that a call names."""
    tools = (tool["function"] for tool in item["tools"])
    return next((tool["parameters"] for tool in tools if tool["name"] == call["name"]), None)


def in_order(schema: Any, value: Any) -> Any:
    """A value with declared properties first and in the schema's order, as our policy writes them."""
    if isinstance(value, list):
        items = schema.get("items", {}) if isinstance(schema, dict) else {}
        return [in_order(items, item) for item in value]
    if not isinstance(value, dict):
        return value
    declared = schema.get("properties", {}) if isinstance(schema, dict) else {}
    names = [name for name in declared if name in value] + [name for name in value if name not in declared]
    return {name: in_order(declared.get(name, {}), value[name]) for name in names}


def measure(shared: Shared, whitespace: Whitespace = "fixed", limit: int = 0) -> dict[str, Outcome]:
    """The three sets on the real vocabulary; the third is left out when its file is not there."""
    vocab = shared.vocabulary()
    compiler = shared.compiler(vocab)
    sets: dict[str, list[Case]] = {"pydantic": everyday_pydantic.cases(), "openai": everyday_openai.cases()}
    found = {name: check_all(compiler, vocab, cases[: limit or None], whitespace) for name, cases in sets.items()}
    items = shared.tools(limit)
    if items:
        found["tools"], skipped = check_tools(compiler, vocab, items, whitespace)
        print(f"tools: {skipped} gold calls left out, not valid under their own schema", file=sys.stderr)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--whitespace", choices=("fixed", "compact"), default="fixed")
    parser.add_argument("--limit", type=int, default=0, help="cases of each set; 0: all")
    arguments = parser.parse_args()
    found = measure(load_shared(arguments), arguments.whitespace, arguments.limit)
    for name, outcome in found.items():
        for problem in outcome.problems:
            print(f"  {problem}")
        print(
            f"{name}: {outcome.compiled} of {outcome.schemas} schemas compiled; {outcome.accepted} accepted, "
            f"{outcome.rejected} rejected as they must be; {len(outcome.problems)} problems"
        )
    return 0 if all(outcome.right for outcome in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
