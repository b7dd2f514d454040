"""``openai``: the client's own accumulating stream, with functions declared as models of pydantic."""

from __future__ import annotations

import enum

import openai
import pydantic
from common import KEY, MODEL, QUESTION, URL, Note

Unit = enum.Enum("Unit", {"fahrenheit": "fahrenheit", "kelvin": "kelvin"})


class Temperature(pydantic.BaseModel):
    city: str


class Convert(pydantic.BaseModel):
    celsius: float
    unit: Unit


client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
tools = [
    openai.pydantic_function_tool(Temperature, name="temperature"),
    openai.pydantic_function_tool(Convert, name="convert"),
]
note = Note()
messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
for _ in range(4):
    pieces = []
    with client.chat.completions.stream(model=MODEL, messages=messages, tools=tools) as stream:
        for event in stream:
            if event.type == "content.delta":
                pieces.append(event.delta)
        message = stream.get_final_completion().choices[0].message
    if not message.tool_calls:
        break
    messages.append(message)
    for call in message.tool_calls:
        assert isinstance(call.function.parsed_arguments, (Temperature, Convert))
        given = call.function.parsed_arguments.model_dump(mode="json")
        result, _ = note.call(call.function.name, given)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": result}]})
note.pieces = pieces
note.tell(message.content)
