"""The first five minutes: an agent program on the bundled model, and what it cost.

    make run          or, in your own environment,   python examples/quickstart.py [MODEL]

A program reads an order, pulls out a field that must match a regex, asks two questions in parallel branches that share
everything read so far, chooses a label, and runs another program, which calls a tool with JSON that is valid by
construction. The bundled model is tiny: the *structure* of every answer is guaranteed, its content is as good as 5.8 M
parameters get.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

import sglite as sgl

WEATHER_TOOL = {
    "name": "get_weather",
    "description": "Weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"const": "get_weather"},
        "arguments": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
ORDER = "Order 48213: Maria Lopez from Lisbon bought 3 lamps for $59.70 on 2026-03-14."
REVIEW = "Great lamps, I love them!"


def get_weather(city: str) -> str:
    """The tool itself: ordinary Python."""
    return json.dumps({"city": city, "temperature": 15, "condition": "cloudy"})


@sgl.function
def weather(s: Any, city: str) -> None:
    """A tool call whose JSON must match a schema, the tool's answer, and a sentence about it."""
    s += sgl.system("You are a helpful assistant.\n\n<tools>\n" + json.dumps(WEATHER_TOOL) + "\n</tools>")
    s += sgl.user(f"What is the weather in {city}?")
    s += sgl.assistant("<tool_call>\n" + sgl.gen("call", json_schema=CALL_SCHEMA, max_tokens=96) + "\n</tool_call>")
    result = get_weather(**json.loads(s["call"])["arguments"])  # reading a variable waits for it, nothing else does
    s += sgl.user(f"<tool_response>\n{result}\n</tool_response>")
    s += sgl.assistant(sgl.gen("weather", max_tokens=32))


@sgl.function
def agent(s: Any, order: str, review: str) -> None:
    """Roles, a field that matches a regex, a fork of two branches, a choice, and another program."""
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user(f"Text: {order}\n\nQuestion: What is the date?")
    s += sgl.assistant("The date is " + sgl.gen("date", regex=r"[0-9]{4}-[0-9]{2}-[0-9]{2}", max_tokens=16) + ".")

    branches = s.fork(2)  # both start from everything above, which is computed once
    for branch, field in zip(branches, ("customer", "city"), strict=True):
        branch += sgl.user(f"What is the {field}?")
        branch += sgl.assistant(f"The {field} is" + sgl.gen(field, max_tokens=16, stop=[".", "\n"]) + ".")
    s["customer"], s["city"] = branches

    s += sgl.user(f"Is this review positive, negative or neutral? {review}")
    s += sgl.assistant(sgl.select("mood", ["positive", "negative", "neutral"]))

    s["tool"] = weather.run(s["city"]["city"].strip(), temperature=0)  # a program may run another


def accounting(state: Any) -> Table:
    """One line a model call: what its prompt cost, and what it did not."""
    table = Table(title="What it cost (tokens)", title_justify="left")
    for column in ("call", "value", "prompt", "cached", "computed", "output", "forced", "forward passes"):
        table.add_column(column, justify="left" if column in ("call", "value") else "right", no_wrap=True)
    fields = ("prompt_tokens", "cached_tokens", "computed_prompt_tokens", "completion_tokens", "forced_tokens")
    calls = [("date", state), ("customer", state["customer"]), ("city", state["city"]), ("mood", state)]
    for name, source in [*calls, ("call", state["tool"]), ("weather", state["tool"])]:
        meta = source.get_meta_info(name) or {}
        value = " ".join(str(source[name]).split())
        figures = [str(meta.get(field, "")) for field in (*fields, "forward_passes")]
        table.add_row(name, value if len(value) < 36 else value[:33] + "...", *figures)
    return table


def main() -> None:
    """Run the program and show what it said and what it cost."""
    console = Console(width=120)
    with sgl.Engine(sys.argv[1] if len(sys.argv) > 1 else None, random_seed=0) as engine:
        sgl.set_default_backend(engine)
        state = agent.run(ORDER, REVIEW, temperature=0)
        for title, text in (("agent", state.text()), ("weather", state["tool"].text())):
            console.rule(title)
            console.print(text, markup=False, highlight=False)
        console.print(accounting(state))
        call = json.loads(state["tool"]["call"])
        console.print(f"tool call, valid by construction: {call}", markup=False)
        totals = engine.get_server_info()["totals"]
        console.print(
            f"whole run: {totals['prompt_tokens']} prompt tokens, {totals['cached_tokens']} of them shared, "
            f"{totals['computed_prompt_tokens']} computed; {totals['completion_tokens']} output tokens, "
            f"{totals['forced_tokens']} of them without a forward pass of their own"
        )


if __name__ == "__main__":
    main()
