"""``litellm``, as an OpenAI-compatible provider; chunks put together by its own builder."""

from __future__ import annotations

import litellm
from common import CHAT_TOOLS, KEY, MODEL, QUESTION, URL, Note

note = Note()
messages = [{"role": "user", "content": QUESTION}]
for _ in range(4):
    chunks = list(
        litellm.completion(
            model=f"openai/{MODEL}", api_base=f"{URL}/v1", api_key=KEY, messages=messages, tools=CHAT_TOOLS,
            stream=True, stream_options={"include_usage": True}, num_retries=0,
        )
    )  # fmt: skip
    whole = litellm.stream_chunk_builder(chunks, messages=messages)
    message = whole.choices[0].message
    if getattr(message, "reasoning_content", None):
        note.more["thought"] = message.reasoning_content
    if not message.tool_calls:
        break
    messages.append(message.model_dump())
    for call in message.tool_calls:
        result, _ = note.call(call.function.name, call.function.arguments)
        messages.append({"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": result})
assert whole.usage.completion_tokens > 0
note.pieces = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
note.tell(message.content)
