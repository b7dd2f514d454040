"""A server whose model says what it is told to: the script of an agent's conversation, by what the prompt has so far.

Everything but the choice of tokens is real: template, tokenizer, grammar, parser, routes. What the grammar forbids is
not said, so a reply that a client receives is one that the constraint of its request allows.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sglite.bundled import demo_path
from sglite.runtime.config import EngineArgs, Facts, resolve
from sglite.runtime.engine.assemble import InProcess
from sglite.runtime.engine.engine import Engine
from sglite.runtime.executor.base import ThreadExecutor
from sglite.runtime.executor.scripted import ScriptedWorker
from sglite.runtime.parse.base import Call
from sglite.runtime.parse.hermes import Hermes
from sglite.runtime.protocol import NewRow
from sglite.runtime.text.tokenizer import Tokenizer

BUILD = "sglite.runtime.executor.build"
QUESTION = "How warm is it in Atlantis and in Oslo, in Fahrenheit?"
ANSWER = "In Oslo it is 54.5 degrees Fahrenheit; Atlantis is on no map."
THOUGHT = "Two cities, so two calls."
EXTRACT = "Extract the person: ada is 36."
"""What a client with a validator asks; the first reply is refused by it, the second is right."""


def reply(prompt: str) -> str:
    """The model's next turn."""
    if EXTRACT in prompt:
        return _person(prompt)
    results = prompt.rpartition(QUESTION)[2].count("<tool_response>")
    if results == 0:
        calls = [Call("temperature", {"city": city}) for city in ("Atlantis", "Oslo")]
        return f"<think>\n{THOUGHT}\n</think>\n\n" + Hermes().write("I look them up.", calls)
    if results == 2:
        return Hermes().write("", [Call("convert", {"celsius": 12.5, "unit": "fahrenheit"})])
    if '"final_result"' in prompt:
        return Hermes().write("", [Call("final_result", {"summary": ANSWER, "degrees": 54.5})])
    return json.dumps({"summary": ANSWER, "degrees": 54.5}) if "As JSON." in prompt else ANSWER


def _person(prompt: str) -> str:
    person = {"name": "Ada" if "capital letter" in prompt else "ada", "age": 36}
    tools = prompt.partition("<tools>\n")[2].partition("\n</tools>")[0]
    if not tools:
        return json.dumps(person)
    name = json.loads(tools.splitlines()[0])["function"]["name"]
    return Hermes().write("", [Call(name, person)])


class TellingWorker(ScriptedWorker):
    """Writes ``tell(prompt)``, the longest allowed token at a time, and then the end."""

    def __init__(self, tokenizer: Tokenizer, tell: Callable[[str], str], eos: int, *pool: int) -> None:
        super().__init__(lambda _: eos, *pool)
        self._tokenizer = tokenizer
        self._tell = tell
        self._eos = eos
        pieces = {i: self._bytes([i]) for i in range(tokenizer.vocab_size)}
        self._ids = {piece: i for i, piece in reversed(pieces.items()) if piece}
        self._longest = max(map(len, self._ids))

    def _bytes(self, ids: list[int]) -> bytes:
        return self._tokenizer.join(ids, skip_special_tokens=False, at_start=False)[0]

    def _choose(self, new: NewRow, num_output: int, fingerprint: int, allowed: Callable[[int], bool]) -> int:
        prompt = self._tokenizer.decode(list(new.prompt_ids), skip_special_tokens=False)
        said = self._bytes(self._outputs[new.slot])
        wanted = self._tell(prompt).encode()
        if wanted.startswith(said):
            rest = wanted[len(said) :]
            for size in range(min(self._longest, len(rest)), 0, -1):
                token = self._ids.get(rest[:size])
                if token is not None and allowed(token):
                    return token
        return super()._choose(new, num_output, fingerprint, allowed)


@contextmanager
def told_engine(tell: Callable[[str], str] = reply) -> Iterator[Engine]:
    """An engine over the bundled checkpoint's tokenizer and template, without its weights."""
    folder = demo_path()
    tokenizer = Tokenizer.from_folder(folder)

    def build(args: EngineArgs, _: Path) -> Any:
        size, eos = tokenizer.vocab_size, tokenizer.eos_token_id
        facts = Facts(
            max_context=8192, vocab_size=size, bytes_per_token=1, free_memory=None, dtype="float32", device="cpu"
        )
        config = resolve(args, facts)
        worker = TellingWorker(tokenizer, tell, eos, config.num_pages, config.page_size)
        return types.SimpleNamespace(executor=ThreadExecutor(worker), config=config, eos_ids=(eos,), weight_bytes=0)

    before = sys.modules.get(BUILD)
    fake: Any = types.ModuleType(BUILD)
    fake.build = build
    sys.modules[BUILD] = fake
    try:
        engine = Engine(str(folder), launch=InProcess, max_total_tokens=65_536, context_length=8192)
    finally:
        del sys.modules[BUILD]
        if before is not None:
            sys.modules[BUILD] = before
    with engine:
        yield engine
