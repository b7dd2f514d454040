"""``openai``: chat completions, the loop written out."""

from __future__ import annotations

import openai
from common import CHAT_TOOLS, KEY, MODEL, QUESTION, URL, Note

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
note = Note()
messages = [{"role": "user", "content": QUESTION}]
text = ""
for _ in range(4):
    text, thought, calls, usage, finish = "", "", {}, None, None
    pieces = []
    with client.chat.completions.create(
        model=MODEL, messages=messages, tools=CHAT_TOOLS, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                finish = choice.finish_reason or finish
                thought += getattr(choice.delta, "reasoning_content", None) or ""
                if choice.delta.content:
                    pieces.append(choice.delta.content)
                for part in choice.delta.tool_calls or []:
                    call = calls.setdefault(part.index, {"id": "", "name": "", "arguments": ""})
                    call["id"] += part.id or ""
                    call["name"] += part.function.name or ""
                    call["arguments"] += part.function.arguments or ""
    text = "".join(pieces)
    assert usage is not None and usage.completion_tokens > 0
    assert finish == ("tool_calls" if calls else "stop"), finish
    if thought:
        note.more["thought"] = thought
    if not calls:
        note.pieces = pieces
        break
    called = [
        {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
        for c in calls.values()
    ]
    messages.append({"role": "assistant", "content": text or None, "tool_calls": called})
    for call in calls.values():
        result, _ = note.call(call["name"], call["arguments"])
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
note.tell(text)
