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

import sglite
from sglite.runtime.config import EngineArgs, Facts
from sglite.runtime.engine.assemble import InProcess
from sglite.runtime.engine.engine import Engine
from sglite.runtime.executor.base import ThreadExecutor
from sglite.runtime.executor.scripted import ScriptedWorker
from sglite.runtime.parse.base import Call
from sglite.runtime.parse.hermes import Hermes
from sglite.runtime.protocol import UNKNOWN_TOKEN, NewRow, SchedulerOutput
from sglite.runtime.resolve import resolve
from sglite.runtime.text.tokenizer import Tokenizer, load_tokenizer

BUILD = "sglite.runtime.executor.build"
QUESTION = "How warm is it in Atlantis and in Oslo, in Fahrenheit?"
ANSWER = "In Oslo it is 54.5 degrees Fahrenheit; Atlantis is on no map."
THOUGHT = "Two cities, so two calls."
EXTRACT = "Extract the person: ada is 36."
"""What a client with a validator asks; the first reply is refused by it, the second is right."""


def reply(prompt: str) -> str:
    """The model's next turn, after a thought: always where the prompt opens one, else in the first turn only."""
    if EXTRACT in prompt:
        return _person(prompt)
    opened, results = prompt.endswith("<think>\n"), prompt.rpartition(QUESTION)[2].count("<tool_response>")
    thought = f"{THOUGHT}\n</think>\n\n" if opened or results == 0 else ""
    return ("" if opened or not thought else "<think>\n") + thought + _turn(prompt, results)


def _turn(prompt: str, results: int) -> str:
    """Words beside the first calls only where the answer is to be no JSON: else the grammar forbids them."""
    typed, as_json = '"final_result"' in prompt, "As JSON." in prompt
    if results == 0:
        calls = [Call("temperature", {"city": city}) for city in ("Atlantis", "Oslo")]
        return Hermes().write("" if typed or as_json else "I look them up.", calls)
    if results == 2:
        return Hermes().write("", [Call("convert", {"celsius": 12.5, "unit": "fahrenheit"})])
    if typed:
        return Hermes().write("", [Call("final_result", {"summary": ANSWER, "degrees": 54.5})])
    return json.dumps({"summary": ANSWER, "degrees": 54.5}) if as_json else ANSWER


def _person(prompt: str) -> str:
    person = {"name": "Ada" if "capital letter" in prompt else "ada", "age": 36}
    tools = prompt.partition("<tools>\n")[2].partition("\n</tools>")[0]
    if not tools:
        return json.dumps(person)
    name = json.loads(tools.splitlines()[0])["function"]["name"]
    return Hermes().write("", [Call(name, person)])


class TellingWorker(ScriptedWorker):
    """Writes ``tell(prompt)``, the longest allowed token at a time, and then the end."""

    def __init__(self, tokenizer: Tokenizer, tell: Callable[[str], str], eos: int, num_pages: int, size: int) -> None:
        super().__init__(lambda _: eos, num_pages, size)
        self._tokenizer = tokenizer
        self._tell = tell
        self._before: dict[int, tuple[int, int]] = {}
        """Fingerprint -> that of the sequence without its last token, and that token."""
        self._ids = {self._bytes([i]): i for i in reversed(range(tokenizer.vocab_size))}
        self._longest = max(map(len, self._ids))

    def _bytes(self, ids: list[int]) -> bytes:
        return self._tokenizer.join(ids, skip_special_tokens=False, at_start=False)[0]

    def _compute(self, step: SchedulerOutput) -> dict[tuple[int, int], int]:
        prints = super()._compute(step)
        for index, row in enumerate(step.rows):
            assert not row.parents, "nothing is drafted here"
            before = self.slots[self._slot(row, row.start - 1)] if row.start else 0
            for position, token in enumerate(row.token_ids, row.start):
                known = self._last.get(row.slot, -2) if token == UNKNOWN_TOKEN else token
                self._before[prints[index, position]] = before, known
                before = prints[index, position]
        return prints

    def _tokens(self, fingerprint: int) -> list[int]:
        found = []
        while fingerprint in self._before:
            fingerprint, token = self._before[fingerprint]
            found.append(token)
        return found[::-1]

    def _choose(self, new: NewRow, num_output: int, fingerprint: int, allowed: Callable[[int], bool]) -> int:
        tokens = self._tokens(fingerprint)
        at = len(tokens) - num_output
        said = self._bytes(tokens[at:])
        wanted = self._tell(self._tokenizer.decode(tokens[:at], skip_special_tokens=False)).encode()
        rest = wanted[len(said) :] if wanted.startswith(said) else b""
        for size in range(min(self._longest, len(rest)), 0, -1):
            token = self._ids.get(rest[:size])
            if token is not None and allowed(token):
                return token
        return super()._choose(new, num_output, fingerprint, allowed)


@contextmanager
def told_engine(tell: Callable[[str], str] = reply) -> Iterator[Engine]:
    """An engine over the bundled checkpoint's tokenizer and template, without its weights."""
    folder = Path(sglite.__file__).parent / "bundled" / "sglite-demo"
    tokenizer = load_tokenizer(folder)

    def build(args: EngineArgs, _: Path) -> Any:
        size, eos = tokenizer.vocab_size, tokenizer.eos_token_ids[0]
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
