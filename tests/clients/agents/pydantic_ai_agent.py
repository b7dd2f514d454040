"""``pydantic-ai``: its agent, streamed; ``chat`` or ``responses``, with ``typed`` an answer through a final tool."""

from __future__ import annotations

import asyncio
import sys
from typing import Literal

import openai
import pydantic
from common import KEY, MODEL, QUESTION, URL, NoSuchCity, Note
from pydantic_ai import Agent, AgentRunResultEvent, ModelRetry
from pydantic_ai.messages import PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Final(pydantic.BaseModel):
    summary: str
    degrees: float


note = Note()
provider = OpenAIProvider(openai_client=openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0))
model = (OpenAIResponsesModel if "responses" in sys.argv[2:] else OpenAIChatModel)(MODEL, provider=provider)
typed = "typed" in sys.argv[2:]
agent = Agent(model, output_type=Final if typed else str)


@agent.tool_plain(retries=2)
def temperature(city: str) -> float:
    """Degrees Celsius in a city."""
    try:
        return note.temperature(city)
    except NoSuchCity as error:
        raise ModelRetry(str(error)) from error


@agent.tool_plain
def convert(celsius: float, unit: Literal["fahrenheit", "kelvin"]) -> float:
    """Degrees Celsius in another unit."""
    return note.convert(celsius, unit)


async def main() -> None:
    answer: object = None
    async with agent.run_stream_events(QUESTION) as events:
        async for event in events:
            if isinstance(event, PartStartEvent):  # the pieces are those of the last part
                note.pieces = [event.part.content] if isinstance(event.part, TextPart) else []
            elif isinstance(event, PartDeltaEvent):
                delta = event.delta
                note.pieces.append(delta.content_delta if isinstance(delta, TextPartDelta) else str(delta))
            elif isinstance(event, AgentRunResultEvent):
                answer = event.result.output
    assert not typed or (isinstance(answer, Final) and answer.degrees == 54.5)
    note.calls.sort(key=lambda call: (call[0] == "convert", call[2] != "error"))  # its tools run side by side
    note.tell(answer.summary if isinstance(answer, Final) else str(answer))


asyncio.run(main())
