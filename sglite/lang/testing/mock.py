"""``Mock``: a back end whose answers are scripted. Nothing is computed, nothing leaves the process.

Promises: an answer that a request could not have got is refused, with the names of both; requests get answers in the
order in which they arrive; ``done`` fails when answers are left over, or when one was refused and nobody noticed.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from sglite.lang.backends.base import Backend, Conversation, GenCall, Hints, Output, Stream
from sglite.lang.choices import ChoiceScores
from sglite.lang.formats import PLAIN, ChatFormat
from sglite.lang.messages import ToolCall
from sglite.lang.testing.answers import Fail, Invalid, MockError, MockRequest, in_full
from sglite.lang.testing.open_streams import OpenStreams
from sglite.lang.testing.pieces import growing, words
from sglite.lang.testing.rules import check_calls, check_silence, refusal, tool_call, written
from sglite.lang.testing.script import Answers, Script

_UNLIKELY = -1e6
"""Log probability of a choice that is not the answer: so low that no temperature draws it."""


@dataclass(frozen=True)
class _Reply:
    """An answer as an output: what of it is text, and what calls."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None


class Mock(Backend):
    """Answers from a script; see ``answers`` for what an answer may be.

    ``answers``: by variable name (``None``: gens without one), or a list for all requests in order of arrival, or a
    function of the ``MockRequest``, which may be async. What a name has is one answer, used every time; or a list that
    is used up in order, one answer an attempt, ``n`` of them with ``n`` > 1; or a function. A value that is itself a
    list is wrapped: ``{"xs": [[1, 2]]}`` once, ``{"xs": Say([1, 2])}`` every time.

    A ``select`` is answered with one of its choices, or with ``{choice: log probability}`` of all of them.

    ``strict=False``: answers are not checked, as if each were ``Invalid``. ``delay_s``: how long each request takes.
    ``keep``: how many requests are remembered, the latest ones.

    ``meta_info`` counts words, separated by white space, as tokens: ``prompt_tokens`` of the prompt, all of them
    computed, and ``completion_tokens`` of the answer. Token limits are not enforced.
    """

    calls_tools = True

    def __init__(
        self,
        answers: Answers,
        chat_format: ChatFormat = PLAIN,
        *,
        strict: bool = True,
        delay_s: float = 0.0,
        keep: int = 100_000,
    ) -> None:
        self._script = Script(answers)
        self._format = chat_format
        self._strict = strict
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self._requests: deque[MockRequest] = deque(maxlen=keep)
        self._refused: list[MockError] = []
        self._open = OpenStreams()

    @property
    def requests(self) -> list[MockRequest]:
        """The requests so far, in order of arrival."""
        with self._lock:
            return list(self._requests)

    @property
    def prompts(self) -> list[str]:
        """The text before every request so far, in order of arrival."""
        return [request.prompt for request in self.requests]

    def done(self, timeout_s: float = 10.0) -> None:
        """AssertionError if the script has answers that nobody asked for, or gave one that was refused.

        Waits ``timeout_s`` at most for runs that still go on. ``with Mock(...) as mock:`` calls it at its end.
        """
        over = self._open.settle(timeout_s)
        problems = [str(error) for error in self._refused[:5]]
        left = self._script.left()
        if left:
            problems.append(f"the Mock has answers that were not used: {'; '.join(left)}")
        if problems and not over:
            problems.append(f"a run was still going on after {timeout_s} s")
        if problems:
            raise AssertionError("; ".join(problems))

    def __enter__(self) -> Mock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.done()

    def chat_format(self) -> ChatFormat:
        """See Backend."""
        return self._format

    def open(self, program_id: str) -> Stream:
        """See Backend."""
        self._open.add(1)
        return _MockStream(self, "", 0)

    async def prefill(self, text: str) -> None:
        """Nothing to compute."""

    async def _answers(self, request: MockRequest, count: int) -> list[Any]:
        """What the script has for ``request``; notes it, and waits the delay."""
        with self._lock:
            self._requests.append(request)
            taken = self._script.take(request, count)
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        if not callable(taken):
            return list(taken)
        given = [taken(replace(request, index=index)) for index in range(count)]
        return [await one if inspect.isawaitable(one) else one for one in given]

    def _note(self, error: MockError) -> MockError:
        with self._lock:
            self._refused.append(error)
        return error


class _MockStream(Stream):
    """A text. ``calls``: how many calls of tools its conversation has, which number the next."""

    def __init__(self, mock: Mock, text: str, calls: int) -> None:
        self._mock = mock
        self._text = text
        self._calls = calls
        self._closed = False

    def append(self, text: str) -> None:
        self._text += text

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        request = _gen_request(call, self._text)
        try:
            answers = await self._mock._answers(request, call.sampling.n or 1)
            replies = [self._reply(request, answer) for answer in answers]
        except MockError as error:
            raise self._mock._note(error) from None
        texts = [reply.text for reply in replies]
        failing = any(reply.error is not None for reply in replies)
        for cut in (*growing(texts), *([texts] if failing else [])) if call.stream else ():
            yield tuple(Output(text, _meta(request, text, None)) for text in cut)
        for reply in replies:
            if reply.error is not None:
                raise reply.error
        yield tuple(Output(reply.text, reply.meta, reply.calls) for reply in replies)
        self._text += replies[0].text

    def _reply(self, request: MockRequest, answer: Any) -> _Reply:
        if isinstance(answer, Fail):
            return _Reply(answer.after, error=answer.exception())
        checked = self._mock._strict and not isinstance(answer, Invalid)
        say = in_full(answer.answer if isinstance(answer, Invalid) else answer)
        proper = [one for one in say.calls if not isinstance(one, (Invalid, ToolCall))]
        if checked:
            check_calls(request, proper)
            if not say.calls:
                check_silence(request, answer)
        complete = say.finish == "stop" and not say.calls
        text = written(request, say.text, checked=checked, complete=complete)
        calls = []
        for one in say.calls:
            calls.append(tool_call(one.answer if isinstance(one, Invalid) else one, self._calls))
            self._calls += 1
        finish = "tool_calls" if calls and say.finish == "stop" else say.finish
        return _Reply(text, tuple(calls), {**_meta(request, text, finish), **say.meta})

    async def score(
        self,
        name: str | None,
        choices: Sequence[str],
        *,
        unconditional: bool,
        conversation: Conversation | None = None,
        hints: Hints = Hints(),  # noqa: B008  (frozen)
    ) -> ChoiceScores:
        request = MockRequest(
            kind="select",
            name=name,
            prompt=self._text,
            messages=_messages(conversation),
            choices=tuple(choices),
            node=hints.node,
        )
        try:
            (answer,) = await self._mock._answers(request, 1)
            if isinstance(answer, Fail):
                raise answer.exception()
            logprobs = _logprobs(request, answer)
        except MockError as error:
            raise self._mock._note(error) from None
        inputs = [[[logprobs[choice], i, choice]] for i, choice in enumerate(choices)]
        alone = [[[None, i, choice]] for i, choice in enumerate(choices)]
        read = sum(words(self._text + choice) for choice in choices)
        cost = {"prompt_tokens": read, "cached_tokens": 0, "computed_prompt_tokens": read, "completion_tokens": 0}
        return ChoiceScores(inputs, [[] for _ in choices], alone if unconditional else None, cost)

    def mark(self) -> object:
        return self._text, self._calls

    def rewind(self, mark: object) -> None:
        assert isinstance(mark, tuple)
        self._text, self._calls = mark

    async def fork(self, n: int) -> list[Stream]:
        self._mock._open.add(n)
        return [_MockStream(self._mock, self._text, self._calls) for _ in range(n)]

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._mock._open.add(-1)


def _messages(conversation: Conversation | None) -> list[dict[str, Any]]:
    return [] if conversation is None else [dict(message) for message in conversation.messages]


def _gen_request(call: GenCall, prompt: str) -> MockRequest:
    return MockRequest(
        kind="gen",
        name=call.name,
        prompt=prompt,
        messages=_messages(call.conversation),
        sampling=call.sampling,
        tools=call.tools,
        tool_choice=call.tool_choice,
        spec=call.schema_of,
        node=call.hints.node,
    )


def _meta(request: MockRequest, text: str, finish: str | None) -> dict[str, Any]:
    """``meta_info`` of an output; ``finish``: None while it is being written."""
    prompt, completion = words(request.prompt), words(text)
    reason = {"type": finish, "length": completion} if finish == "length" else {"type": finish}
    sampling = request.sampling
    constrained = any((sampling.regex, sampling.json_schema, sampling.ebnf, sampling.structural_tag))
    meta = {
        "prompt_tokens": prompt,
        "cached_tokens": 0,
        "computed_prompt_tokens": prompt,
        "completion_tokens": completion,
        "finish_reason": None if finish is None else reason,
    }
    return {**meta, "constraint_complete": finish != "length"} if constrained and finish is not None else meta


def _logprobs(request: MockRequest, answer: Any) -> dict[str, float]:
    """The log probability of each choice."""
    choices = request.choices
    if isinstance(answer, Mapping):
        if set(answer) != set(choices):
            raise refusal(request, dict(answer), f"has to give a log probability to each of {list(choices)}")
        return {choice: float(answer[choice]) for choice in choices}
    if answer not in choices:
        raise refusal(request, answer, f"is none of {list(choices)}")
    return {choice: 0.0 if choice == answer else _UNLIKELY for choice in choices}
