"""A sequence that an sglite server holds: text is sent once, tokens never come back, what is known ahead is chained.

The stream says what it wants as *nodes* (see ``endpoint_link``). A place in the sequence is named by the node it lies
behind, so taking text back needs no lengths. What the program is known to do next is sent at once (``prepare``): the
server goes on without a round trip. What comes otherwise than foretold is aborted and taken back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from sglite.lang.backends.base import Conversation, GenCall, Hints, Output, Stream, scored_rows
from sglite.lang.backends.endpoint_link import Answer, Link
from sglite.lang.choices import ChoiceScores, cost_of
from sglite.lang.errors import BackendError

_MAX_FORETOLD = 256
"""Requests that are sent before their turn."""
_MAX_BRANCHES = 1024
"""Of one fork node."""


@dataclass
class _Foretold:
    """A request that the program is to make: its ``number`` among the stream's, the text before it, the call.

    ``id`` and ``answer``: of the node, once it was sent.
    """

    number: int
    text: str
    call: GenCall
    id: str = ""
    answer: Answer | None = None


class ProgramStream(Stream):
    """See the module. ``seq``: the name of a sequence that the server has, or is about to have, already."""

    def __init__(self, link: Link, seq: str | None = None) -> None:
        self._link = link
        self._seq = seq if seq is not None else link.name()
        self._open = seq is not None
        self._last = ""
        """The node behind which the sequence stands, without the text that waits."""
        self._pending = ""
        self._sent = 0
        """How much of the text that waits the server has."""
        self._foretold: deque[_Foretold] = deque()
        self._number = 0
        """Requests made so far."""
        self._under_way = False

    def _put(self, op: str, **fields: Any) -> Answer:
        if not self._open:
            self._open = True
            self._link.put("open", self._seq, now=False)
        return self._link.put(op, self._seq, **fields)

    # --- text -------------------------------------------------------------------------------------------------

    def append(self, text: str) -> None:
        """See Stream."""
        self._pending += text

    def mark(self) -> object:
        """See Stream."""
        return self._last, self._pending

    def rewind(self, mark: object) -> None:
        """See Stream."""
        self._last, self._pending = cast(tuple[str, str], mark)
        self._take_back()

    def _take_back(self) -> None:
        """The sequence is what it was behind ``_last``; of the text that waits the server has nothing any more."""
        for one in self._foretold:
            if one.answer is not None and not one.answer.done:
                self._put("abort", target=one.id)
        self._foretold.clear()
        self._sent = 0
        if self._open:
            self._put("truncate", after=self._last, now=False)

    def _extend(self) -> None:
        """Sends the text that waits."""
        if len(self._pending) > self._sent:
            self._put("extend", text=self._pending[self._sent :], now=False)
            self._sent = len(self._pending)

    def _stand_behind(self, node: str) -> None:
        """What waited has been committed."""
        self._last, self._pending, self._sent = node, "", 0

    # --- generating -------------------------------------------------------------------------------------------

    def prepare(self, text: str, call: GenCall) -> None:
        """See Stream."""
        if len(self._foretold) < _MAX_FORETOLD:
            after = self._foretold[-1].number if self._foretold else self._number + (not self._under_way)
            self._foretold.append(_Foretold(after + 1, text, call))
            if self._under_way:
                self._send_foretold()

    def _send_foretold(self) -> None:
        for one in self._foretold:
            if one.answer is None:
                if one.text:
                    self._put("extend", text=one.text, now=False)
                one.id = self._link.name()
                one.answer = self._put("generate", id=one.id, **_fields(one.call))

    def _begin(self, call: GenCall) -> tuple[str, Answer]:
        """The request's node: the one that was sent ahead, if it is that one, or a new one."""
        self._number += 1
        if self._foretold and self._foretold[0].number == self._number:
            one = self._foretold[0]
            if one.answer is not None and not self._sent and (one.text, one.call) == (self._pending, call):
                self._foretold.popleft()
                return one.id, one.answer
            self._take_back()
        self._extend()
        node = self._link.name()
        return node, self._put("generate", id=node, **_fields(call))

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        """See Stream."""
        node, answer = self._begin(call)
        self._under_way = True
        self._send_foretold()
        settled = False
        try:
            async for event in answer.events():
                outputs = tuple(Output(one["text"], one["meta_info"]) for one in event["outputs"])
                if event.get("done") and all(map(_ended_well, outputs)):
                    self._stand_behind(node)
                    settled, self._under_way = True, False
                yield outputs
        finally:
            self._under_way = False
            if not settled:
                if not answer.done:
                    self._put("abort", target=node)
                self._take_back()

    # --- the rest ---------------------------------------------------------------------------------------------

    async def score(
        self,
        name: str | None,
        choices: Sequence[str],
        *,
        unconditional: bool,
        conversation: Conversation | None = None,
        hints: Hints = Hints(),  # noqa: B008  (frozen)
    ) -> ChoiceScores:
        """See Stream. One node; the sequence and the text that waits stay as they are."""
        if self._foretold:
            self._take_back()
        self._extend()
        node, given = self._link.name(), list(choices)
        answer = self._put("score", id=node, choices=given, unconditional=unconditional, hints=asdict(hints))
        found = await answer.last()
        metas = found["scores"]
        inputs = [scored_rows(c, m["input_token_logprobs"]) for c, m in zip(given, metas, strict=True)]
        outputs = [meta.get("output_token_logprobs") or [] for meta in metas]
        alone = [meta["input_token_logprobs"] for meta in found["unconditional"]] if unconditional else None
        return ChoiceScores(inputs, outputs, alone, cost_of(metas))

    async def fork(self, n: int) -> list[Stream]:
        """See Stream. Nothing is waited for: the branches' first nodes travel with the fork."""
        if self._foretold:
            self._take_back()
        self._extend()
        names = [self._link.name() for _ in range(n)]
        for start in range(0, n, _MAX_BRANCHES):
            node = self._link.name()
            self._put("fork", id=node, now=False, into=names[start : start + _MAX_BRANCHES])
            self._stand_behind(node)
        self._link.num_streams += n
        return [ProgramStream(self._link, name) for name in names]

    def park(self, expected_s: float | None = None) -> None:
        """See Stream."""
        self._put("park", expected_s=expected_s)

    async def aclose(self) -> None:
        """Gives the sequence back. A server that is gone, or has given it up, is none of the program's concern."""
        try:
            if self._open:
                if self._foretold:
                    self._take_back()
                await self._link.close(self._seq)
        except BackendError:
            return
        finally:
            self._link.leave()


def _fields(call: GenCall) -> dict[str, Any]:
    """A generate node's fields."""
    return {
        "sampling_params": call.params(),
        "stream": call.stream,
        "hints": asdict(call.hints),
        **call.logprob_options(),
    }


def _ended_well(output: Output) -> bool:
    reason = output.meta.get("finish_reason")
    return isinstance(reason, dict) and reason.get("type") in ("stop", "length")
