"""What the language asks of whatever answers its programs.

A ``Backend`` opens ``Stream``s. A stream is one append-only sequence: known text is appended, outputs join it, a fork
shares its prefix. All calls on a stream come from the programs' event loop, one at a time; ``append`` must not block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglite.lang.choices import ChoiceScores, Rows
from sglite.lang.errors import BackendError, Unsupported
from sglite.lang.formats import ChatFormat
from sglite.lang.ir import Media, Sampling


@dataclass(frozen=True, kw_only=True)
class GenCall:
    """One request for text. ``sampling`` is complete: the run's defaults and the format's stops are in it."""

    name: str | None
    sampling: Sampling
    stream: bool = False

    def params(self) -> dict[str, Any]:
        """``sampling_params`` of SGLang's native protocol."""
        given = {name: getattr(self.sampling, name) for name in _PARAMS}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if v is not None}

    def logprob_options(self) -> dict[str, Any]:
        """The fields of SGLang's native protocol that ask for log probabilities."""
        given = {name: getattr(self.sampling, name) for name in _LOGPROB_OPTIONS}
        return {k: v for k, v in given.items() if v is not None}


_LOGPROB_OPTIONS = ("return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs")
_PARAMS = tuple(name for name in Sampling.__dataclass_fields__ if name not in _LOGPROB_OPTIONS)


@dataclass(frozen=True)
class Output:
    """Text generated so far, and what the back end says about its request (SGLang's ``meta_info``)."""

    text: str
    meta: dict[str, Any] = field(default_factory=dict)


def scored_rows(choice: str, rows: Rows) -> Rows:
    """The rows of a choice that have a probability; BackendError if none has."""
    scored = [row for row in rows if row[0] is not None]
    if not scored:
        raise BackendError(f"choice {choice!r} has no token with a probability; put text before select()")
    return scored


def check_finished(outputs: tuple[Output, ...]) -> None:
    """BackendError with the back end's message if it gave a request up."""
    for output in outputs:
        reason = output.meta.get("finish_reason")
        if isinstance(reason, dict) and reason.get("type") in ("abort", "error"):
            raise BackendError(f"request ended with {reason['type']}: {reason.get('message') or 'no reason given'}")


class Stream(ABC):
    """One append-only sequence in a back end."""

    @abstractmethod
    def append(self, text: str) -> None:
        """Known text follows. Cheap: nothing need be computed yet."""

    @abstractmethod
    def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        """Yields the outputs so far, ``n`` of them, cumulative; at least once, the last time complete.

        The first output then belongs to the sequence. Closing the iterator early stops the request.
        Raises BackendError or ValueError when the request is refused.
        """

    @abstractmethod
    async def score(self, name: str | None, choices: Sequence[str], *, unconditional: bool) -> ChoiceScores:
        """Log probabilities of each choice as continuation; the sequence stays as it is.

        ``unconditional``: also without the sequence before it.
        """

    @abstractmethod
    async def fork(self, n: int) -> list[Stream]:
        """``n`` sequences that start from this one. What they share is computed once."""

    def attach(self, media: Media) -> str:
        """An image or a video follows; returns the text that stands for it, which the sequence then has.

        Raises Unsupported where there is no such thing.
        """
        raise Unsupported(f"{media}: this back end takes text only; use a model that understands {media.kind}s")

    @abstractmethod
    async def aclose(self) -> None:
        """The program needs the sequence no more."""


class Backend(ABC):
    """What ``backend=`` and ``set_default_backend`` take (an ``Engine`` is wrapped into one)."""

    @abstractmethod
    def chat_format(self) -> ChatFormat:
        """How the model's turns are spelled; never blocks."""

    @abstractmethod
    def open(self, program_id: str) -> Stream:
        """A new, empty sequence for a stream of program ``program_id``."""

    @abstractmethod
    async def prefill(self, text: str) -> None:
        """Computes ``text`` as the start of a sequence, so that programs that start with it find it cached."""

    def flush_cache(self) -> bool:
        """Forgets cached prefixes; whether that happened. Blocks."""
        return False

    def get_server_info(self) -> dict[str, Any] | None:
        """What the back end says about itself. Blocks."""
        return None
