"""What the language asks of whatever answers its programs.

A ``Backend`` opens ``Stream``s. A stream is one append-only sequence: known text is appended, outputs join it, a fork
shares its prefix. All calls on a stream come from the programs' event loop, one at a time; ``append`` must not block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sglite.lang.choices import ChoiceScores, Rows
from sglite.lang.errors import BackendError, Unsupported
from sglite.lang.formats import ChatFormat
from sglite.lang.ir import REST_OF_CONTEXT, Media, Sampling
from sglite.lang.messages import Message, ToolCall, ToolSpec


class Conversation(Protocol):
    """The text before a request as turns, for back ends that are asked with messages."""

    @property
    def messages(self) -> list[Message]:
        """Finished turns."""
        ...

    @property
    def role(self) -> str | None:
        """Whose turn is open; None outside turns."""
        ...

    @property
    def open_text(self) -> str:
        """Text of the open turn so far; outside turns, what follows the last one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Where in the program's graph a request stands; what a runtime may use to order and keep prefixes.

    ``node``: names the request in its run, the same in every run of the same program. ``group``: the fork whose
    branches send their first requests together, ``group_size`` of them. ``upcoming``: requests that the stream is
    known to send after this one.
    """

    node: str = ""
    group: str = ""
    group_size: int = 1
    upcoming: int = 0


@dataclass(frozen=True, kw_only=True)
class GenCall:
    """One request for text. ``sampling`` is complete: the run's defaults and the format's stops are in it.

    ``tools``: what the model may call; only with ``conversation``, and only for back ends with ``calls_tools``.
    ``schema_of``: the Python type that the text is read as, for back ends that make text up.
    """

    name: str | None
    sampling: Sampling
    stream: bool = False
    conversation: Conversation | None = field(default=None, compare=False)
    hints: Hints = field(default=Hints(), compare=False)
    heal: bool = False
    """The last tokens of the text before may be written anew; the output does not repeat their text."""
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str = "auto"
    schema_of: Any = field(default=None, compare=False)

    def params(self) -> dict[str, Any]:
        """``sampling_params`` of SGLang's native protocol."""
        given = {name: getattr(self.sampling, name) for name in _PARAMS}
        params = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if v is not None}
        if self.sampling.max_new_tokens == REST_OF_CONTEXT:
            params["max_new_tokens"] = None  # said aloud: left out, it would be the back end's default
        return params

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
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls, from back ends with ``calls_tools``; others write them into the text."""
    token_ids: tuple[int, ...] | None = None
    """Ids of the output, where the back end tells them."""


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
    async def score(
        self,
        name: str | None,
        choices: Sequence[str],
        *,
        unconditional: bool,
        conversation: Conversation | None = None,
        hints: Hints = Hints(),
    ) -> ChoiceScores:
        """Log probabilities of each choice as continuation; the sequence stays as it is.

        ``unconditional``: also without the sequence before it.
        """

    def mark(self) -> object:
        """This place in the sequence, for ``rewind``; ``rewind`` to one mark may happen several times."""
        raise Unsupported(f"{type(self).__name__} cannot take text back; checks with retries and rollback() need that")

    def rewind(self, mark: object) -> None:
        """Takes back everything since ``mark``; what was computed up to there stays cached. Not while generating."""
        raise Unsupported(f"{type(self).__name__} cannot take text back; checks with retries and rollback() need that")

    def prepare(self, text: str, call: GenCall) -> None:
        """A hint, given while the stream generates or is about to: ``text`` will be appended after what is under way
        and ``call`` made then. A back end that can begin it without waiting to be asked returns its outputs when
        exactly that is asked for, and drops it otherwise."""
        return None

    def speculate(self, num_tokens: int) -> None:
        """The program was declared with ``num_api_spec_tokens``: a paid API may be asked for so many tokens at once,
        ahead of the program. Back ends where a request costs nothing by itself have no use for it."""
        return None

    def park(self, expected_s: float | None = None) -> None:
        """A hint: the program now waits for something else, a tool say, for about so long."""
        return None

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

    calls_tools = False
    """Whether the back end takes ``GenCall.tools`` and answers with ``Output.tool_calls``."""
    closes = False
    """Whether it takes ``on_limit="close"``: a constrained text is whole when its token limit ends it."""
    heals = False
    """Whether it takes ``GenCall.heal``."""
    tool_format: Any = None
    """How its model writes tool calls, once that has been found out."""
    by_messages = False
    """Whether requests carry ``GenCall.conversation`` and not the text of the sequence."""

    @abstractmethod
    def chat_format(self) -> ChatFormat:
        """How the model's turns are spelled; never blocks."""

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> str | None:
        """The prompt that the model's own chat template makes of a conversation with ``tools``, up to and with the
        opening of the assistant's turn. None: there is no template; ValueError: it refuses the messages. May block."""
        return None

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
