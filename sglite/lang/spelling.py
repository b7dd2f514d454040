"""The methods of a running state that return values: ``s.gen(Person)`` where SGLang's spelling is ``s += gen(...)``.

Each returns a ``Value``: awaited it is the object, appended it is its text. In a conversation, a gen outside any turn
is the assistant's turn.
"""

from __future__ import annotations

import builtins
import inspect
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from sglite.lang.expressions import gen, repeat, select
from sglite.lang.ir import Ask, Checkpoint, Expr, Reply, Restart, RoleBegin, RoleEnd, Rollback, Tell
from sglite.lang.messages import Message, ToolSpec
from sglite.lang.values import Value
from sglite.lang.writer import Writer

_RULES = ("dtype", "regex", "json_schema", "ebnf", "structural_tag", "choices")

T = TypeVar("T")
S = TypeVar("S", bound="TypedSpelling")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Place:
    """Where ``rollback`` comes back to."""

    number: int
    role: str | None
    turns: bool
    prev: int | None
    variables: Mapping[str, Any]


class TypedSpelling(Writer):
    """See the module; mixed into ``ProgramState``, which owns what it uses."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._reachable: list[Place] = []
        """Where ``rollback`` may come back to."""

    @abstractmethod
    def _last_value(self) -> Any:
        """What stands for the output that was appended last."""

    @abstractmethod
    def _started(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Starts a branch's coroutine; what stands for its result."""

    @abstractmethod
    def _ordered(self, texts: list[str]) -> list[str]:
        """Texts in the order that shares most."""

    @abstractmethod
    def _new_place(self) -> Place:
        """This place, under a new number."""

    @abstractmethod
    def _restore(self, place: Place) -> None:
        """Variables as they were at ``place``."""

    # --- outputs ---

    @overload
    def gen(
        self, type: builtins.type[T], name: str | None = ..., max_tokens: int | None = ..., **arguments: Any
    ) -> Value[T]: ...
    @overload
    def gen(
        self, type: Any = ..., name: str | None = ..., max_tokens: int | None = ..., **arguments: Any
    ) -> Value[Any]: ...
    def gen(
        self, type: Any = str, name: str | None = None, max_tokens: int | None = None, **arguments: Any
    ) -> Value[Any]:
        """An output read as ``type``: int, float, bool, str, Literal, Enum, list[...], dataclass, TypedDict, pydantic
        model... ``arguments``: those of ``sgl.gen``. Without ``max_tokens`` it may fill what is left of the context.

        Awaiting the value raises ``Incomplete`` (which then is a VariableError too) when a limit cut it off.
        """
        if type is str and any(arguments.get(rule) is not None for rule in _RULES):
            type = None  # the constraint says what the text is
        return self._output(gen(name, max_tokens, type=type, whole_turn=True, **arguments))

    def select(self, choices: Sequence[str], name: str | None = None, **arguments: Any) -> Value[str]:
        """One of ``choices``; ``arguments``: those of ``sgl.select``."""
        return self._output(select(name, choices, **arguments))

    def repeat(self, name: str | None = None, item: Any = str, **arguments: Any) -> Value[list[Any]]:
        """A list of ``item``s as text, separated; see ``sgl.repeat``."""
        return self._output(repeat(name, item, whole_turn=True, **arguments))

    def _output(self, output: Expr) -> Value[Any]:
        if self._role is None and self._turns:
            self._append(RoleBegin("assistant") + output + RoleEnd("assistant"))
        else:
            self._append(output)
        value: Value[Any] = self._last_value()
        return value

    def map(self: S, items: Iterable[Item], function: Callable[[S, Item], Any]) -> list[Any]:
        """``function(branch, item)`` for every item, each on a branch of its own; what they return, in order.

        The branches share the text so far and run at once. Coroutines are started; their values stand for what they
        will return, and like all values may be appended or awaited.
        """
        rows = list(items)
        if not rows:
            return []
        branches = self.fork(len(rows))
        results = [function(branch, row) for branch, row in zip(branches, rows, strict=True)]
        return [self._started(result) if inspect.iscoroutine(result) else result for result in results]

    # --- going back ---

    def checkpoint(self) -> Place:
        """This place; ``rollback`` comes back to it. Its prefix stays cached."""
        place = self._new_place()
        self._append(Checkpoint(place.number))
        self._reachable.append(place)
        return place

    def rollback(self, place: Place) -> None:
        """Text, turns and variables are again what they were at ``place``; what was streamed since is not taken back.

        ``place`` may be come back to several times, on the stream that it was made on. ValueError for any other place.
        """
        index = next((i for i, known in enumerate(self._reachable) if known is place), None)
        if index is None:
            raise ValueError(
                "rollback: this place is not on this stream (any more): it was made on another one, was itself taken "
                "back, or lies before a compact(); go back to a checkpoint() that is still there"
            )
        del self._reachable[index + 1 :]
        self._append(Rollback(place.number))
        self._role, self._turns, self._prev = place.role, place.turns, place.prev
        self._restore(place)

    def compact(self, summary: str | Expr, *, role: str = "user", keep_system: bool = True) -> None:
        """A new, short sequence takes the place of this one: the same system turn, if there is one and it is to be
        kept, and ``summary`` as a turn of ``role``. Make the summary on a branch and give its value."""
        if self._role is not None:
            raise ValueError(f"compact() inside a turn of {self._role!r}; end that one first")
        self._append(Restart(keep_system))
        self._reachable.clear()
        self._turn(role, (summary,))

    # --- parts in any order ---

    @contextmanager
    def unordered(self) -> Iterator[Blocks]:
        """``with s.unordered() as blocks: blocks.add(a); blocks.add(b)``: texts whose order does not matter. Those seen
        most often come first, so that runs share more."""
        blocks = Blocks()
        yield blocks
        for text in self._ordered(blocks.texts):
            self._append(text)

    # --- conversations as data ---

    def tell(self, message: Message) -> None:
        """A finished turn given as a message: a tool's result, an earlier conversation."""
        self._append(Tell(dict(message)))
        self._turns = True

    def ask(self, tools: Sequence[ToolSpec] = ()) -> None:
        """Opens the assistant's turn; the prompt is what the model's chat template makes of the turns and tools."""
        self._append(Ask(tuple(tools)))

    def reply(self, message: Message) -> None:
        """Closes the turn that ``ask`` opened; in ``messages()`` it is ``message``."""
        self._append(Reply(dict(message)))
        self._turns = True


class Blocks:
    """Texts that may come in any order."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, text: str) -> None:
        """One more text. TypeError for anything but a string: outputs have their place."""
        if not isinstance(text, str):
            raise TypeError(f"unordered: {text!r} is no text; outputs and values cannot be moved")
        self.texts.append(text)
