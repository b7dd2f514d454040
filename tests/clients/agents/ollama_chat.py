"""``ollama``: chat with tools, streamed."""

from __future__ import annotations

import ollama
from common import CHAT_TOOLS, MODEL, QUESTION, URL, Note

client = ollama.Client(host=URL)
note = Note()
messages = [{"role": "user", "content": QUESTION}]
for _ in range(4):
    pieces, thought, calls = [], "", []
    for part in client.chat(model=MODEL, messages=messages, tools=CHAT_TOOLS, stream=True, think=True):
        if part.message.content:
            pieces.append(part.message.content)
        thought += part.message.thinking or ""
        calls += part.message.tool_calls or []
    assert part.done and part.eval_count > 0
    if thought:
        note.more["thought"] = thought
    if not calls:
        break
    messages.append({"role": "assistant", "content": "".join(pieces), "thinking": thought, "tool_calls": calls})
    for call in calls:
        result, _ = note.call(call.function.name, dict(call.function.arguments))
        messages.append({"role": "tool", "tool_name": call.function.name, "content": result})
note.pieces = pieces
note.tell("".join(pieces))
