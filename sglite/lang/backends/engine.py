"""An Engine in this process: the one door from the language to the runtime.

A stream is one of the engine's sequences; its state is token ids. Literals stay text here until an output or a fork
needs them, so that neighbours are encoded together; what is committed is never encoded again.

The engine is known by what it can do (the protocols below), so nothing of the runtime is imported here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Protocol, cast

from sglite.lang.backends.base import Backend, Conversation, GenCall, Hints, Output, Stream, scored_rows
from sglite.lang.choices import ChoiceScores, cost_of
from sglite.lang.formats import ChatFormat

_LONG_TEXT = 20_000
"""Encoding more characters than this takes long enough to be done beside the loop."""


class TokenizerLike(Protocol):
    """``Tokenizer``, as far as it is used here."""

    def encode(self, text: str, *, add_bos: bool = ...) -> list[int]: ...


class GenerationLike(Protocol):
    """One request: its events are dicts of ``text`` (cumulative) and ``meta_info``; with n > 1 lists of them."""

    def __aiter__(self) -> AsyncIterator[Any]: ...

    async def wait(self) -> Any: ...

    def abort(self) -> None: ...


class SequenceLike(Protocol):
    """An append-only sequence of token ids in the engine."""

    @property
    def token_ids(self) -> list[int]: ...

    def extend(self, token_ids: Sequence[int]) -> None: ...

    def truncate(self, length: int) -> None: ...

    def generate(self, sampling_params: dict[str, Any], *, stream: bool = ..., **options: Any) -> GenerationLike: ...

    def score(self, continuations: list[list[int]]) -> Sequence[GenerationLike]: ...

    def fork(self, n: int) -> Sequence[SequenceLike]: ...

    def close(self) -> None: ...


class EngineLike(Protocol):
    """``Engine``, as far as the language uses it."""

    @property
    def tokenizer(self) -> TokenizerLike | None: ...

    @property
    def default_system(self) -> str | None: ...

    def turn(self, role: str, first: bool) -> tuple[str, str]: ...

    def open_sequence(self, program_id: str = ..., token_ids: Sequence[int] = ...) -> SequenceLike: ...

    def flush_cache(self) -> Any: ...

    def get_server_info(self) -> dict[str, Any]: ...


class EngineFormat:
    """How the engine's model spells its turns: derived from the model's own chat template."""

    stop: tuple[str, ...] = ()  # the engine itself knows the tokens that end a turn

    def __init__(self, engine: EngineLike) -> None:
        self._engine = engine

    @property
    def default_system(self) -> str | None:
        """What the model's template says where a conversation does not start with a system turn."""
        return self._engine.default_system

    def turn(self, role: str, *, first: bool) -> tuple[str, str]:
        """See ChatFormat."""
        return self._engine.turn(role, first)


class EngineBackend(Backend):
    """``engine`` as a back end. ValueError for an engine without tokenizer."""

    def __init__(self, engine: EngineLike) -> None:
        if engine.tokenizer is None:
            raise ValueError("programs are text: this engine was made without a tokenizer (skip_tokenizer_init=True)")
        self.engine = engine
        self.tokenizer = engine.tokenizer

    def chat_format(self) -> ChatFormat:
        """See Backend."""
        return EngineFormat(self.engine)

    def open(self, program_id: str) -> Stream:
        """See Backend."""
        return EngineStream(self, program_id, self.engine.open_sequence(program_id), fresh=True)

    async def prefill(self, text: str) -> None:
        """See Backend."""
        ids = await encode(self.tokenizer, text, first=True)
        sequence = self.engine.open_sequence("", ids)
        try:
            await _finished(sequence.generate({"max_new_tokens": 0, "temperature": 0.0}))
        finally:
            sequence.close()

    def flush_cache(self) -> bool:
        """See Backend."""
        return bool(self.engine.flush_cache())

    def get_server_info(self) -> dict[str, Any]:
        """See Backend."""
        return dict(self.engine.get_server_info())


class EngineStream(Stream):
    """One of the engine's sequences and the text that follows it. ``fresh``: nothing was committed to it yet."""

    def __init__(self, backend: EngineBackend, program_id: str, sequence: SequenceLike, *, fresh: bool) -> None:
        self._engine = backend.engine
        self._tokenizer = backend.tokenizer
        self._backend = backend
        self._program_id = program_id
        self._sequence = sequence
        self._fresh = fresh
        self._pending = ""

    def append(self, text: str) -> None:
        """See Stream."""
        self._pending += text

    def mark(self) -> object:
        """See Stream."""
        return len(self._sequence.token_ids), self._pending, self._fresh

    def rewind(self, mark: object) -> None:
        """See Stream."""
        length: int
        length, self._pending, self._fresh = cast(tuple[int, str, bool], mark)
        self._sequence.truncate(length)

    async def _commit(self) -> None:
        if self._pending or self._fresh:
            text, self._pending = self._pending, ""
            self._sequence.extend(await encode(self._tokenizer, text, first=self._fresh))
            self._fresh = False

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        """See Stream."""
        await self._commit()
        generation = self._sequence.generate(call.params(), stream=call.stream, **call.logprob_options())
        if not call.stream:
            yield _outputs(await _finished(generation))
            return
        over = False
        try:
            async for event in generation:
                yield _outputs(event)
            over = True
        finally:
            if not over:
                generation.abort()

    async def fork(self, n: int) -> list[Stream]:
        """See Stream."""
        await self._commit()
        return [
            EngineStream(self._backend, self._program_id, sequence, fresh=False) for sequence in self._sequence.fork(n)
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
        texts = [self._pending, *(self._pending + choice for choice in choices)]
        encoded = [await encode(self._tokenizer, text, first=self._fresh) for text in texts]
        common = _common_start(encoded)
        rests = [ids[common:] for ids in encoded[1:]]
        metas = await self._scored([*self._sequence.token_ids, *encoded[0][:common]], rests)
        rows = [meta["input_token_logprobs"] for meta in metas]
        inputs = [scored_rows(choice, found) for choice, found in zip(choices, rows, strict=True)]
        outputs = [meta.get("output_token_logprobs") or [] for meta in metas]
        alone = None
        if unconditional:
            start = self._tokenizer.encode("", add_bos=True)
            without = await self._scored(start, [[row[1] for row in found] for found in inputs])
            alone = [meta["input_token_logprobs"] for meta in without]
        return ChoiceScores(inputs, outputs, alone, cost_of(metas))

    async def _scored(self, prompt: list[int], rests: list[list[int]]) -> list[dict[str, Any]]:
        """``meta_info`` of each continuation of ``prompt``."""
        sequence = self._engine.open_sequence(self._program_id, prompt)
        try:
            events = await asyncio.gather(*(_finished(generation) for generation in sequence.score(rests)))
        finally:
            sequence.close()
        return [event["meta_info"] for event in events]

    async def aclose(self) -> None:
        """See Stream."""
        self._sequence.close()


async def encode(tokenizer: TokenizerLike, text: str, *, first: bool) -> list[int]:
    """The ids of ``text``; ``first``: it begins a sequence."""
    if len(text) > _LONG_TEXT:
        return await asyncio.to_thread(tokenizer.encode, text, add_bos=first)
    return tokenizer.encode(text, add_bos=first)


async def _finished(generation: GenerationLike) -> Any:
    """The last event; a request whose reader is cancelled is aborted."""
    try:
        return await generation.wait()
    except BaseException:
        generation.abort()
        raise


def _outputs(event: Any) -> tuple[Output, ...]:
    events = event if isinstance(event, list) else [event]
    return tuple(Output(one["text"], one.get("meta_info") or {}) for one in events)


def _common_start(sequences: Sequence[Sequence[int]]) -> int:
    """How many items all begin with."""
    length = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length
