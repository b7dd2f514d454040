"""However a program is run, its outputs are the same."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from random_programs import bodies, styles

from sglite.lang.backends.base import Backend, GenCall, Output, Stream
from sglite.lang.choices import ChoiceScores
from sglite.lang.formats import PLAIN, ChatFormat


class Digest(Backend):
    """Every answer is a function of the prompt, the limit and the seed of its request alone."""

    def __init__(self) -> None:
        self.open_streams = 0

    def chat_format(self) -> ChatFormat:
        return PLAIN

    def open(self, program_id: str) -> Stream:
        self.open_streams += 1
        return DigestStream(self, "")

    async def prefill(self, text: str) -> None:
        pass


class DigestStream(Stream):
    def __init__(self, backend: Digest, text: str) -> None:
        self.backend = backend
        self.text = text

    def append(self, text: str) -> None:
        self.text += text

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        text = digest(self.text, call.sampling.seed)[: call.sampling.max_new_tokens]
        for end in range(1, len(text)):
            if call.stream:
                yield (Output(text[:end]),)
        yield (Output(text),)
        self.text += text

    async def score(self, name: str | None, choices: Sequence[str], **options: Any) -> ChoiceScores:
        rows = [[[-float(int(digest(self.text, choice), 16) % 1000), 0, choice]] for choice in choices]
        return ChoiceScores(rows, [[] for _ in choices])

    def mark(self) -> object:
        return self.text

    def rewind(self, mark: object) -> None:
        self.text = str(mark)

    async def fork(self, n: int) -> list[Stream]:
        self.backend.open_streams += n
        return [DigestStream(self.backend, self.text) for _ in range(n)]

    async def aclose(self) -> None:
        self.backend.open_streams -= 1


def digest(text: str, salt: Any) -> str:
    return hashlib.sha256(f"{salt}|{text}".encode()).hexdigest()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bodies())
def test_every_style_of_running_a_program_gives_the_same_values(body: tuple[Any, ...]) -> None:
    backend = Digest()
    found = styles(body, backend=backend, seed=11)
    first = found["one by one"]
    for style, outcome in found.items():
        assert outcome == first, style
    other = styles(body, backend=backend, seed=12)["concurrent"]
    assert len(other) == len(first)
