"""``openai``: the Responses API; first turns that follow by ``previous_response_id``, or with ``items`` all of them."""

from __future__ import annotations

import sys

import openai
from common import ABOUT, KEY, MODEL, QUESTION, SCHEMAS, URL, Note

BY_ITEMS = "items" in sys.argv[2:]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
tools = [
    {"type": "function", "name": name, "description": ABOUT[name], "parameters": schema, "strict": True}
    for name, schema in SCHEMAS.items()
]
note = Note()
items = [{"role": "user", "content": QUESTION}]
before = None
for _ in range(4):
    pieces, arguments = [], {}
    with client.responses.create(
        model=MODEL, input=items, tools=tools, stream=True, previous_response_id=before, store=not BY_ITEMS,
        include=["reasoning.encrypted_content"],
    ) as stream:  # fmt: skip
        for event in stream:
            if event.type == "response.output_text.delta":
                pieces.append(event.delta)
            elif event.type == "response.function_call_arguments.delta":
                arguments[event.item_id] = arguments.get(event.item_id, "") + event.delta
            elif event.type == "response.function_call_arguments.done":
                assert event.arguments == arguments[event.item_id]
    assert event.type == "response.completed", event.type
    response = event.response
    calls = [item for item in response.output if item.type == "function_call"]
    thoughts = [part.text for item in response.output if item.type == "reasoning" for part in item.content]
    if thoughts:
        note.more["thought"] = "".join(thoughts)
    if not calls:
        break
    done = []
    for call in calls:
        result, _ = note.call(call.name, call.arguments)
        done.append({"type": "function_call_output", "call_id": call.call_id, "output": result})
    items = [*items, *response.output, *done] if BY_ITEMS else done
    before = None if BY_ITEMS else response.id
note.pieces = pieces
note.tell(response.output_text)
