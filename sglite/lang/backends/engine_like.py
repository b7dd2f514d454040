"""An engine in this process as the language knows it: by what it can do, so that nothing of the runtime is imported."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol


class TokenizerLike(Protocol):
    """``Tokenizer``, as far as it is used here."""

    def encode(self, text: str, *, add_bos: bool = ...) -> list[int]: ...


class GenerationLike(Protocol):
    """One request: its events are dicts of ``text`` (cumulative) and ``meta_info``; with n > 1 lists of them.

    ``num_committed``: length of its sequence when its output had joined; None: it has not, or never will.
    """

    @property
    def num_committed(self) -> int | None: ...

    def __aiter__(self) -> AsyncIterator[Any]: ...

    async def wait(self) -> Any: ...

    def abort(self) -> None: ...


class SequenceLike(Protocol):
    """An append-only sequence of token ids in the engine."""

    @property
    def token_ids(self) -> list[int]: ...

    def extend(self, token_ids: Sequence[int]) -> None: ...

    def rewind(self, length: int) -> None: ...

    def generate(
        self, sampling_params: dict[str, Any], *, stream: bool = ..., hints: dict[str, Any] | None = ..., **options: Any
    ) -> GenerationLike: ...

    def chain(
        self,
        token_ids: Sequence[int],
        sampling_params: dict[str, Any],
        *,
        stream: bool = ...,
        hints: dict[str, Any] | None = ...,
        **options: Any,
    ) -> GenerationLike: ...

    def score(
        self, continuations: list[list[int]], *, hints: dict[str, Any] | None = ...
    ) -> Sequence[GenerationLike]: ...

    def fork(self, n: int) -> Sequence[SequenceLike]: ...

    def park(self, expected_s: float | None = ...) -> None: ...

    def close(self) -> None: ...


class TemplateLike(Protocol):
    """``ChatTemplate``, as far as it is used here."""

    def render(self, messages: Sequence[Any], *, tools: Any = ..., add_generation_prompt: bool = ...) -> str: ...


class EngineLike(Protocol):
    """``Engine``, as far as the language uses it."""

    @property
    def tokenizer(self) -> TokenizerLike | None: ...

    @property
    def chat_template(self) -> TemplateLike | None: ...

    @property
    def default_system(self) -> str | None: ...

    def turn(self, role: str, first: bool) -> tuple[str, str]: ...

    def open_sequence(self, program_id: str = ..., token_ids: Sequence[int] = ...) -> SequenceLike: ...

    def flush_cache(self) -> Any: ...

    def get_server_info(self) -> dict[str, Any]: ...
