"""``openai-agents``: its runner, streamed; ``chat`` or ``responses``, and with ``typed`` an answer in a schema."""

from __future__ import annotations

import asyncio
import sys

import agents
import openai
import pydantic
from common import KEY, MODEL, QUESTION, URL, Note


class Final(pydantic.BaseModel):
    summary: str
    degrees: float


note = Note()
agents.set_tracing_disabled(True)
client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
kind = agents.OpenAIResponsesModel if "responses" in sys.argv[2:] else agents.OpenAIChatCompletionsModel
typed = "typed" in sys.argv[2:]


@agents.function_tool
def temperature(city: str) -> float:
    """Degrees Celsius in a city."""
    return note.temperature(city)


@agents.function_tool
def convert(celsius: float, unit: str) -> float:
    """Degrees Celsius in another unit."""
    return note.convert(celsius, unit)


async def main() -> None:
    agent = agents.Agent(
        name="weather",
        instructions="Be brief.",
        model=kind(model=MODEL, openai_client=client),
        tools=[temperature, convert],
        output_type=Final if typed else None,
    )
    result = agents.Runner.run_streamed(agent, QUESTION + (" As JSON." if typed else ""))
    pieces: list[str] = []
    async for event in result.stream_events():
        if event.type == "raw_response_event":
            if event.data.type == "response.output_text.delta":
                pieces.append(event.data.delta)
            elif event.data.type == "response.created":
                pieces.clear()
    note.pieces = pieces
    note.calls.sort(key=lambda call: (call[0] == "convert", call[2] != "error"))  # its tools run side by side
    answer = result.final_output
    note.tell(answer.summary if typed else answer)


asyncio.run(main())
