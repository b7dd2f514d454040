"""``openai``: a model that need not know what tools are is made to call them, by ``required`` and by name, streamed."""

from __future__ import annotations

import json

import openai
from common import CHAT_TOOLS, KEY, MODEL, QUESTION, SCHEMAS, URL, Note

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
note = Note()
messages = [{"role": "user", "content": QUESTION}]
named = [{"type": "function", "function": {"name": name}} for name in SCHEMAS]
kinds = {"string": str, "number": (int, float)}
text = ""
for choice in (*named, "required", "none"):
    calls: dict[int, dict[str, str]] = {}
    pieces = []
    with client.chat.completions.create(
        model=MODEL, messages=messages, tools=CHAT_TOOLS, tool_choice=choice, parallel_tool_calls=False, stream=True,
        temperature=1.0, seed=7, max_tokens=150,
    ) as stream:  # fmt: skip
        for chunk in stream:
            delta = chunk.choices[0].delta
            pieces += [delta.content] if delta.content else []
            for part in delta.tool_calls or []:
                call = calls.setdefault(part.index, {"id": part.id, "name": part.function.name, "arguments": ""})
                call["arguments"] += part.function.arguments or ""
    text = "".join(pieces)
    assert (len(calls) == 0) == (choice == "none"), (choice, calls, text)
    if choice == "none":
        break
    (call,) = calls.values()
    given, schema = json.loads(call["arguments"]), SCHEMAS[call["name"]]
    assert choice == "required" or call["name"] == choice["function"]["name"]
    assert sorted(given) == sorted(schema["required"])
    assert all(isinstance(given[name], kinds[of["type"]]) for name, of in schema["properties"].items())
    function = {"name": call["name"], "arguments": call["arguments"]}
    made = [{"id": call["id"], "type": "function", "function": function}]
    messages.append({"role": "assistant", "content": None, "tool_calls": made})
    result = note.call(call["name"], given)[0] if note.calls else "Error: the service is down"
    note.calls += [] if note.calls else [(call["name"], given, "error")]
    messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
note.tell(text)
