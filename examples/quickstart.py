"""The first five minutes: an agent program on the bundled model, and what it cost.

    make run          or, in your own environment,   python examples/quickstart.py [MODEL]

One program reads an order, pulls out a field that must match a regex, chooses a label, looks at two questions in
parallel branches that share everything read so far, and calls a tool with JSON that is valid by construction. The
bundled model is tiny: the *structure* of every answer is guaranteed, its content is as good as 5.8 M parameters get.
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


def get_weather(city: str) -> str:
    """The tool itself: ordinary Python."""
    return json.dumps({"city": city, "temperature": 21, "condition": "sunny"})


@sgl.function
def agent(s: Any, order: str) -> None:
    """Roles, a regex field, a select, a fork of two branches, a tool call."""
    s += sgl.system("You are a helpful assistant.\n\n<tools>\n" + json.dumps(WEATHER_TOOL) + "\n</tools>")
    s += sgl.user(f"Text: {order}\n\nQuestion: What is the date?")
    s += sgl.assistant("The date is " + sgl.gen("date", regex=r"[0-9]{4}-[0-9]{2}-[0-9]{2}", max_tokens=16) + ".")

    s += sgl.user("Is this review positive, negative or neutral? Great lamps, I love them!")
    s += sgl.assistant(sgl.select("mood", ["positive", "negative", "neutral"]))

    branches = s.fork(2)  # both start from everything above, which is computed once
    for branch, field in zip(branches, ("name", "city"), strict=True):
        branch += sgl.user(f"What is the {field}?")
        branch += sgl.assistant(f"The {field} is" + sgl.gen("answer", max_tokens=16, stop=".") + ".")
    s["name"], s["city"] = (branch["answer"].strip() for branch in branches)
    s["branches"] = list(branches)

    s += sgl.user(f"What is the weather in {s['city']}?")
    s += sgl.assistant("<tool_call>\n" + sgl.gen("call", json_schema=CALL_SCHEMA, max_tokens=96) + "\n</tool_call>")
    result = get_weather(**json.loads(s["call"])["arguments"])
    s += sgl.user(f"<tool_response>\n{result}\n</tool_response>")
    s += sgl.assistant(sgl.gen("answer", max_tokens=32))


def accounting(state: Any) -> Table:
    """One line a model call: what its prompt cost, and what it did not."""
    table = Table(title="What it cost (tokens)", title_justify="left")
    for column in ("call", "value", "prompt", "cached", "computed", "output", "forced", "forward passes"):
        table.add_column(column, justify="left" if column in ("call", "value") else "right", overflow="ellipsis")
    calls = [("date", state), ("mood", state), *((f"fork {i}: answer", b) for i, b in enumerate(state["branches"]))]
    for label, source in [*calls, ("call", state), ("answer", state)]:
        name = label.split(": ")[-1]
        meta = source.get_meta_info(name) or {}
        fields = ("prompt_tokens", "cached_tokens", "computed_prompt_tokens", "completion_tokens", "forced_tokens")
        figures = [str(meta.get(field, "")) for field in (*fields, "forward_passes")]
        table.add_row(label, " ".join(str(source[name]).split())[:34], *figures)
    return table


def main() -> None:
    """Run the program and show what it said and what it cost."""
    console = Console(width=120)
    with sgl.Engine(sys.argv[1] if len(sys.argv) > 1 else None, random_seed=0) as engine:
        state = agent.run(ORDER, backend=engine, temperature=0)
        state.sync()
        console.print(state.text(), markup=False, highlight=False, style="dim")
        console.print(accounting(state))
        call = json.loads(state["call"])
        console.print(f"tool call, valid by construction: {call}", markup=False)
        totals = engine.get_server_info()["totals"]
        console.print(
            f"whole run: {totals['prompt_tokens']} prompt tokens, {totals['cached_tokens']} of them shared, "
            f"{totals['computed_prompt_tokens']} computed; {totals['completion_tokens']} output tokens, "
            f"{totals['forced_tokens']} of them without a forward pass of their own"
        )


if __name__ == "__main__":
    main()
