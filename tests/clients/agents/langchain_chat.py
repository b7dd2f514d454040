"""``langchain-openai``: bound tools, streamed; ``responses``: over the Responses API."""

from __future__ import annotations

import sys

from common import KEY, MODEL, QUESTION, URL, Note
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

note = Note()


@tool
def temperature(city: str) -> float:
    """Degrees Celsius in a city."""
    return note.temperature(city)


@tool
def convert(celsius: float, unit: str) -> float:
    """Degrees Celsius in another unit."""
    return note.convert(celsius, unit)


TOOLS = {"temperature": temperature, "convert": convert}
over = "responses" in sys.argv[2:]
model = ChatOpenAI(
    model=MODEL, base_url=f"{URL}/v1", api_key=KEY, max_retries=0, use_responses_api=over, stream_usage=True
).bind_tools(list(TOOLS.values()))
messages = [HumanMessage(QUESTION)]
for _ in range(4):
    chunks = list(model.stream(messages))
    message = chunks[0]
    for chunk in chunks[1:]:
        message += chunk
    messages.append(message)
    if not message.tool_calls:
        break
    for call in message.tool_calls:
        try:
            messages.append(TOOLS[call["name"]].invoke(call))
        except Exception as error:
            messages.append(ToolMessage(f"Error: {error}", tool_call_id=call["id"], status="error"))
assert message.usage_metadata["output_tokens"] > 0
note.pieces = [text for chunk in chunks if (text := chunk.text if isinstance(chunk.text, str) else chunk.text())]
note.tell("".join(note.pieces))
