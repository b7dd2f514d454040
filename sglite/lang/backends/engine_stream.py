"""A stream of a program on one of the engine's sequences: when its text becomes tokens, and what is begun early.

Literals stay text until an output or a fork needs them, so that neighbours are encoded together; what is committed is
never encoded again. What the program is known to ask for next (``prepare``) is chained in the engine, which goes on
with it by itself, without a word from here:

    program    gen 1 ........ text, gen 2        text, gen 3
    engine     gen 1 | text, gen 2 | text, gen 3

A request whose turn comes as foretold is handed over; otherwise what was foretold is aborted, and the sequence is what
it would be without. A foretold request is known by its number among the stream's requests, its text and its call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from sglite.lang.backends.base import Conversation, GenCall, Hints, Output, Stream, scored_rows
from sglite.lang.backends.engine_like import EngineLike, GenerationLike, SequenceLike, TokenizerLike
from sglite.lang.backends.healing import border, held_to, without
from sglite.lang.choices import ChoiceScores, cost_of

_LONG_TEXT = 20_000
"""Encoding more characters than this takes long enough to be done beside the loop."""
_MAX_FORETOLD = 64
"""Requests of a stream that are begun before their turn, or kept for it."""


@dataclass
class _Foretold:
    """A request that the program is to make: the ``number``-th of its stream, after ``text``.

    ``generation``: what was begun of it, after ``ids``.
    """

    number: int
    text: str
    call: GenCall
    generation: GenerationLike | None = None
    ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Mark:
    """A place in a stream. ``rewinds``: how often the stream had been taken back before it was marked."""

    length: int
    pending: str
    fresh: bool
    rewinds: int


class EngineStream(Stream):
    """One of the engine's sequences and the text that follows it. ``committed``: tokens it has; None: it is new."""

    def __init__(
        self,
        engine: EngineLike,
        tokenizer: TokenizerLike,
        program_id: str,
        sequence: SequenceLike,
        committed: int | None = None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._program_id = program_id
        self._sequence = sequence
        self._length = committed or 0
        """Of the sequence, without what was only foretold."""
        self._fresh = committed is None
        self._pending = ""
        self._number = 0
        """Of the request made last."""
        self._told = 0
        """Of the request foretold last."""
        self._rewinds = 0
        self._cuts: list[tuple[int, int]] = []
        """Which rewind took back everything from which length on, as far as later ones did not take back more."""
        self._foretold: deque[_Foretold] = deque()
        self._requesting = False
        self._current: GenerationLike | None = None
        self._deaf = False
        """What is under way is no request for text: nobody knows what comes of it."""

    def append(self, text: str) -> None:
        """See Stream."""
        self._pending += text

    def mark(self) -> object:
        """See Stream."""
        return _Mark(self._length, self._pending, self._fresh, self._rewinds)

    def rewind(self, mark: object) -> None:
        """See Stream. ValueError for a place that was itself taken back since."""
        assert isinstance(mark, _Mark)
        if any(number > mark.rewinds and length < mark.length for number, length in self._cuts):
            raise ValueError("this place was taken back itself, by going back to one before it; mark it again")
        self._length, self._pending, self._fresh = mark.length, mark.pending, mark.fresh
        self._rewinds += 1
        self._cuts = [cut for cut in self._cuts if cut[1] < mark.length]  # the others say nothing that this does not
        self._cuts.append((self._rewinds, mark.length))
        self._take_back()

    def park(self, expected_s: float | None = None) -> None:
        """See Stream."""
        self._sequence.park(expected_s)

    def _take_back(self) -> None:
        """Nothing is foretold any more, nothing goes on: the sequence has what was committed to it and no more."""
        self._told = 0
        self._foretold.clear()
        self._sequence.rewind(self._length)

    def _forget(self) -> None:
        """What was foretold does not come, or not now."""
        if self._foretold:
            self._take_back()

    def _extend(self, ids: list[int]) -> None:
        if ids:
            self._sequence.extend(ids)
            self._length += len(ids)

    async def _commit(self) -> None:
        if self._pending or self._fresh:
            text, self._pending = self._pending, ""
            self._extend(await encode(self._tokenizer, text, first=self._fresh))
            self._fresh = False

    # --- requests for text ---

    def prepare(self, text: str, call: GenCall) -> None:
        """See Stream. Long text, and what follows it, waits for its turn: encoding it would hold up the loop."""
        if self._deaf:
            return
        self._told = max(self._told, self._number + (not self._requesting)) + 1
        if len(self._foretold) < _MAX_FORETOLD:
            self._foretold.append(_Foretold(self._told, text, call))
            self._chain()

    def _chain(self) -> None:
        """Begin what is foretold after what is under way. What cannot be begun is left for its turn, which says why."""
        for number, told in enumerate(self._foretold, self._number + 1):
            if told.generation is not None:
                continue
            if self._current is None or told.number != number or len(told.text) > _LONG_TEXT:
                return
            alone = replace(told.call.hints, group="", group_size=1)  # only first requests are members of a group
            try:
                told.ids = self._tokenizer.encode(told.text) if told.text else []
                told.generation = self._sequence.chain(told.ids, **_request(told.call, alone))
            except (ValueError, RuntimeError):
                return

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        """See Stream."""
        self._requesting, self._number = True, self._number + 1
        told, tail = self._turn_of(call), ""
        try:
            if call.heal:
                call, tail = await self._healed(call)
            if told is not None and told.generation is not None:
                self._pending, generation, text = "", told.generation, told.ids
            else:
                await self._commit()
                generation, text = self._sequence.generate(**_request(call, call.hints)), []
            self._current = generation
            self._chain()
            async with aclosing(self._outputs(generation, call.stream, text)) as steps:
                async for outputs in steps:
                    yield without(outputs, tail)
        finally:
            self._requesting, self._current = False, None

    async def _healed(self, call: GenCall) -> tuple[GenCall, str]:
        """Commits the text but for its last tokens, which the request may write anew; their text."""
        text, first = self._pending, self._fresh
        ids = await encode(self._tokenizer, text, first=first)
        limit = len(text) if call.conversation is None else min(len(text), len(call.conversation.open_text))
        stops = call.sampling.stop or ()

        def encoded(part: str) -> list[int]:
            return self._tokenizer.encode(part, add_bos=first)

        count, tail = border(text, ids, encoded, least=int(first), limit=limit, stops=stops)
        if not count:
            return replace(call, heal=False), ""
        self._pending, self._fresh = "", False
        self._extend(ids[:-count])
        return held_to(call, tail, count), tail

    def _turn_of(self, call: GenCall) -> _Foretold | None:
        """What was foretold of the request to be made now, if it comes as foretold; otherwise all that was is void."""
        if not self._foretold or self._foretold[0].number != self._number:
            return None
        told = self._foretold[0]
        if (told.text, told.call) != (self._pending, call):
            self._forget()
            return None
        return self._foretold.popleft()

    async def _outputs(
        self, generation: GenerationLike, stream: bool, text: list[int]
    ) -> AsyncGenerator[tuple[Output, ...], None]:
        """Outputs, and then the sequence as it is with the first of them.

        Where it failed, or its reader went away before the end, that is without; what was appended before it stays,
        of which ``text`` was begun together with it.
        """
        whole = False
        try:
            if stream:
                async for event in generation:
                    whole = _is_last(event)
                    yield _outputs(event)
                whole = True
            else:
                event = await generation.wait()
                whole = True
                yield _outputs(event)
        finally:
            if whole and generation.num_committed is not None:
                self._length = generation.num_committed
            else:
                self._take_back()
                self._extend(text)

    # --- other requests ---

    async def fork(self, n: int) -> list[Stream]:
        """See Stream."""
        self._forget()
        await self._commit()
        return [
            EngineStream(self._engine, self._tokenizer, self._program_id, sequence, self._length)
            for sequence in self._sequence.fork(n)
        ]

    async def score(
        self,
        name: str | None,
        choices: Sequence[str],
        *,
        unconditional: bool,
        conversation: Conversation | None = None,
        hints: Hints = Hints(),  # noqa: B008  (frozen)
    ) -> ChoiceScores:
        """See Stream.

        A choice may change how the text just before it is encoded. So text not committed yet is encoded with each
        choice, what all have in common is computed once, and the rest of each, which is the choice and at times the
        text's last tokens, is scored. Nothing is committed.
        """
        self._forget()
        self._deaf = True
        try:
            texts = [self._pending, *(self._pending + choice for choice in choices)]
            encoded = [await encode(self._tokenizer, text, first=self._fresh) for text in texts]
            common = _common_start(encoded)
            prompt, rests = [*self._sequence.token_ids, *encoded[0][:common]], [ids[common:] for ids in encoded[1:]]
            asked = [self._scored(prompt, rests, hints)]
            alone = rests if prompt else [ids[1:] for ids in rests]  # what nothing precedes has no probability
            if unconditional and all(alone):
                asked.append(self._scored(self._tokenizer.encode("", add_bos=True), alone, hints))
            metas, *others = await asyncio.gather(*asked)
        finally:
            self._deaf = False
        inputs = [scored_rows(text, meta["input_token_logprobs"]) for text, meta in zip(choices, metas, strict=True)]
        outputs = [meta.get("output_token_logprobs") or [] for meta in metas]
        without = [meta["input_token_logprobs"] for meta in others[0]] if others else None
        return ChoiceScores(inputs, outputs, without, cost_of(metas))

    async def _scored(self, prompt: list[int], rests: list[list[int]], hints: Hints) -> list[dict[str, Any]]:
        """``meta_info`` of each continuation of ``prompt``."""
        sequence = self._engine.open_sequence(self._program_id, prompt)
        generations: Sequence[GenerationLike] = ()
        try:
            generations = sequence.score(rests, **_hinted(hints))
            return [(await generation.wait())["meta_info"] for generation in generations]
        except BaseException:
            for generation in generations:
                generation.abort()
            raise
        finally:
            sequence.close()

    async def aclose(self) -> None:
        """See Stream."""
        self._forget()
        self._sequence.close()


async def encode(tokenizer: TokenizerLike, text: str, *, first: bool) -> list[int]:
    """The ids of ``text``; ``first``: it begins a sequence."""
    if len(text) > _LONG_TEXT:
        return await asyncio.to_thread(tokenizer.encode, text, add_bos=first)
    return tokenizer.encode(text, add_bos=first)


def _request(call: GenCall, hints: Hints) -> dict[str, Any]:
    """A call as a sequence's ``generate`` takes it."""
    return {
        "sampling_params": call.params(),
        "stream": call.stream,
        **call.logprob_options(),
        **_hinted(hints),
    }


def _hinted(hints: Hints) -> dict[str, Any]:
    """``hints`` as a keyword argument, if they say anything."""
    return {} if hints == Hints() else {"hints": vars(hints)}


def _is_last(event: Any) -> bool:
    """Nothing follows this event."""
    events = event if isinstance(event, list) else [event]
    return all((one.get("meta_info") or {}).get("finish_reason") is not None for one in events)


def _outputs(event: Any) -> tuple[Output, ...]:
    events = event if isinstance(event, list) else [event]
    return tuple(_output(one) for one in events)


def _output(event: dict[str, Any]) -> Output:
    meta = event.get("meta_info") or {}
    whole = meta.get("finish_reason") is not None
    return Output(event["text"], meta, token_ids=tuple(event.get("output_ids") or ()) if whole else None)


def _common_start(sequences: Sequence[Sequence[int]]) -> int:
    """How many items all begin with."""
    length = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length
