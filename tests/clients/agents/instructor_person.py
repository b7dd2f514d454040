"""``instructor``: a value in each of its ways of asking, again when a validator refuses the first; and streamed."""

from __future__ import annotations

import sys

import instructor
import openai
import pydantic
from common import EXTRACT, KEY, MODEL, URL, Note


class Person(pydantic.BaseModel):
    name: str
    age: int

    @pydantic.field_validator("name")
    @classmethod
    def begins_high(cls, value: str) -> str:
        note.calls.append(("validate", {"name": value}, "error" if value.islower() else value))
        if value.islower():
            raise ValueError("a name begins with a capital letter")
        return value


note = Note()
mode = instructor.Mode[sys.argv[2]]
raw = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
client = instructor.from_openai(raw, mode=mode)
messages = [{"role": "user", "content": EXTRACT}]
person = client.chat.completions.create(model=MODEL, messages=messages, response_model=Person, max_retries=2)
if mode is not instructor.Mode.RESPONSES_TOOLS:
    hint = [{"role": "user", "content": EXTRACT + " A name begins with a capital letter."}]
    last = None
    for last in client.chat.completions.create_partial(model=MODEL, messages=hint, response_model=Person):
        note.pieces.append(str(last))
    assert last is not None and last.model_dump() == person.model_dump(), last
note.tell(person.model_dump_json())
