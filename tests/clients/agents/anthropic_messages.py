"""``anthropic``: messages with tools, streamed; the failed result is marked as one."""

from __future__ import annotations

import anthropic
from common import ABOUT, KEY, MODEL, QUESTION, SCHEMAS, URL, Note

client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
tools = [{"name": name, "description": ABOUT[name], "input_schema": schema} for name, schema in SCHEMAS.items()]
note = Note()
messages = [{"role": "user", "content": QUESTION}]
for _ in range(4):
    with client.messages.stream(model=MODEL, max_tokens=1000, messages=messages, tools=tools) as stream:
        note.pieces = list(stream.text_stream)
        message = stream.get_final_message()
    thoughts = [block.thinking for block in message.content if block.type == "thinking"]
    if thoughts:
        note.more["thought"] = "".join(thoughts)
    messages.append({"role": "assistant", "content": message.content})
    if message.stop_reason != "tool_use":
        break
    results = []
    for block in message.content:
        if block.type == "tool_use":
            result, good = note.call(block.name, block.input)
            results.append({"type": "tool_result", "tool_use_id": block.id, "content": result, "is_error": not good})
    messages.append({"role": "user", "content": results})
assert message.stop_reason == "end_turn" and message.usage.output_tokens > 0
note.tell("".join(note.pieces))
