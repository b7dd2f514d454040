"""Back ends for tests of programs: answers are scripted, nothing is computed, nothing leaves the process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from sglite.lang.backends.base import Backend, Conversation, GenCall, Hints, Output, Stream
from sglite.lang.choices import ChoiceScores
from sglite.lang.errors import BackendError
from sglite.lang.formats import PLAIN, ChatFormat

_UNLIKELY = -10.0


class Mock(Backend):
    """Answers from a script.

    ``answers``: by variable name, one answer or a list of them that is used up in order (a single one never is); or a
    list for all requests in the order in which they arrive. A ``select`` is answered with one of its choices.
    BackendError when the script has no answer, or one that is not among the choices.

    ``prompts``: the text before every request so far, in order of arrival.
    """

    def __init__(
        self, answers: Mapping[str, str | Sequence[str]] | Sequence[str], chat_format: ChatFormat = PLAIN
    ) -> None:
        self.prompts: list[str] = []
        self._format = chat_format
        self._lock = threading.Lock()
        self._fixed: dict[str, str] = {}
        self._queues: dict[str | None, deque[str]] = {}
        if isinstance(answers, Mapping):
            self._fixed = {name: answer for name, answer in answers.items() if isinstance(answer, str)}
            self._queues = {name: deque(a) for name, a in answers.items() if not isinstance(a, str)}
        else:
            self._queues = {None: deque(answers)}

    def answer(self, name: str | None, prompt: str, count: int = 1) -> list[str]:
        """The next ``count`` answers for ``name``; notes the prompt."""
        with self._lock:
            self.prompts.append(prompt)
            if name in self._fixed:
                return [self._fixed[name]] * count
            queue = self._queues.get(name, self._queues.get(None, deque()))
            if len(queue) < count:
                raise BackendError(f"the Mock has no answer left for {name!r} after {prompt[-60:]!r}")
            return [queue.popleft() for _ in range(count)]

    def chat_format(self) -> ChatFormat:
        """See Backend."""
        return self._format

    def open(self, program_id: str) -> Stream:
        """See Backend."""
        return _MockStream(self, "")

    async def prefill(self, text: str) -> None:
        """Nothing to compute."""


class _MockStream(Stream):
    def __init__(self, mock: Mock, text: str) -> None:
        self._mock = mock
        self._text = text

    def append(self, text: str) -> None:
        self._text += text

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        answers = self._mock.answer(call.name, self._text, call.sampling.n or 1)
        meta: dict[str, Any] = {"finish_reason": {"type": "stop"}}
        if call.stream:
            words = answers[0].split(" ")
            for end in range(1, len(words)):
                yield tuple(Output(" ".join(a.split(" ")[:end]), {}) for a in answers)
        yield tuple(Output(answer, meta) for answer in answers)
        self._text += answers[0]

    def mark(self) -> object:
        return self._text

    def rewind(self, mark: object) -> None:
        self._text = str(mark)

    async def score(
        self,
        name: str | None,
        choices: Sequence[str],
        *,
        unconditional: bool,
        conversation: Conversation | None = None,
        hints: Hints = Hints(),  # noqa: B008  (frozen)
    ) -> ChoiceScores:
        (answer,) = self._mock.answer(name, self._text)
        if answer not in choices:
            raise BackendError(f"the Mock's answer {answer!r} for {name!r} is none of {list(choices)}")
        inputs = [[[0.0 if choice == answer else _UNLIKELY, i, choice]] for i, choice in enumerate(choices)]
        alone = [[[None, i, choice]] for i, choice in enumerate(choices)]
        return ChoiceScores(inputs, [[] for _ in choices], alone if unconditional else None)

    async def fork(self, n: int) -> list[Stream]:
        return [_MockStream(self._mock, self._text) for _ in range(n)]

    async def aclose(self) -> None:
        pass
