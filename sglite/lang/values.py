"""Values that programs may append before they exist.

A ``Value`` stands for an output: appending it, alone, in a sum or inside an f-string, is symbolic and never waits;
``await value`` waits for what it stands for. An f-string can only hold text, so a value formats itself as a *mark*,
text that nobody else writes; appending splits marks out again and refuses the remains of marks that were cut up.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, NoReturn, TypeVar
from weakref import WeakValueDictionary

from sglite.lang.cells import Cell, arrival
from sglite.lang.errors import BlockingReadError, SymbolicValueError
from sglite.lang.ir import Expr, Lit, Op, Symbol

T = TypeVar("T")
OPEN, CLOSE = "\uf8f0", "\uf8f1"
"""Private-use characters around a mark; text with one of them alone is refused."""


class Marks:
    """The symbols of one run that were formatted. ``find`` gives them back for as long as the run lives."""

    def __init__(self, directory: WeakValueDictionary[str, Marks]) -> None:
        self._symbols: list[Symbol] = []
        self._key = f"Sgl{secrets.token_hex(8)}"
        directory[self._key] = self

    def mark(self, symbol: Symbol) -> str:
        """Text that stands for ``symbol``."""
        self._symbols.append(symbol)
        return f"{OPEN}{self._key}:{len(self._symbols) - 1}{CLOSE}"

    def has(self, index: str) -> bool:
        """Whether there is an ``index``-th mark."""
        return index.isdecimal() and int(index) < len(self._symbols)

    def at(self, index: int) -> Symbol:
        """The symbol of the ``index``-th mark."""
        return self._symbols[index]


def unmarked(text: str, directory: WeakValueDictionary[str, Marks]) -> Iterator[Op]:
    """``text`` as literals and the symbols that its marks stand for; ValueError where a mark was cut or changed."""
    while OPEN in text or CLOSE in text:
        before, opened, rest = text.partition(OPEN)
        body, closed, after = rest.partition(CLOSE)
        key, _, index = body.partition(":")
        table = directory.get(key)
        if not opened or not closed or CLOSE in before or table is None or not table.has(index):
            raise ValueError(
                f"the text {text[:60]!r} holds what is left of a symbolic value that was cut, changed or belongs to a "
                "run that is over; append the value itself, or wait for it: s['name'], await s.get('name')"
            )
        if before:
            yield Lit(before)
        yield table.at(int(index))  # type: ignore[misc]
        text = after
    if text:
        yield Lit(text)


class Value(Symbol, Generic[T]):
    """An output that may not exist yet. ``await`` it, append it, or in a synchronous program call ``value()``."""

    def __init__(self, cell: Cell, marks: Marks, may_block: Callable[[], bool]) -> None:
        self.cell = cell
        self._marks = marks
        self._may_block = may_block

    def __format__(self, spec: str) -> str:
        if spec:
            raise SymbolicValueError(f"{self!r} cannot be formatted as {spec!r}: its value is not known here")
        return self._marks.mark(self)

    def __str__(self) -> str:
        return self._marks.mark(self)

    @property
    def name(self) -> str:
        """The variable's name."""
        return self.cell.name

    def __await__(self) -> Generator[Any, None, T]:
        with self.cell.waited_for():
            yield from arrival(self.cell.done).__await__()
        return self.cell.get()  # type: ignore[no-any-return]

    def partial(self) -> Any:
        """What can be read of it so far; None where nothing can."""
        if self.cell.done.done():
            return self.cell.get()
        text = "".join(piece for piece, _ in self.cell.feed.so_far())
        return text if self.cell.partial is None else self.cell.partial(text)

    def value(self) -> T:
        """Waits for the value. BlockingReadError inside an async program, which has to ``await`` it."""
        if not self.cell.done.done() and not self._may_block():
            raise BlockingReadError(f"{self!r} does not exist yet: write `await` before it, not .value()")
        with self.cell.waited_for():
            self.cell.done.result()
        return self.cell.get()  # type: ignore[no-any-return]

    def _refuse(self, *_: object) -> SymbolicValueError:
        wait = "read it with .value() or s['name']" if self._may_block() else "write `await` before it"
        return SymbolicValueError(f"{self!r} stands for an output that may not exist yet; {wait} to look at it")

    def __iter__(self) -> NoReturn:
        raise self._refuse()

    def __int__(self) -> int:
        raise self._refuse()

    def __float__(self) -> float:
        raise self._refuse()

    def __getitem__(self, _: object) -> NoReturn:
        raise self._refuse()

    def __repr__(self) -> str:
        return f"<value {self.cell.name!r}>"


def values_in(result: Any) -> Iterator[Value[Any]]:
    """The values that a result is, or that lists, tuples and dicts of it hold."""
    if isinstance(result, Value):
        yield result
    elif isinstance(result, (list, tuple)):
        for item in result:
            yield from values_in(item)
    elif isinstance(result, dict):
        for item in result.values():
            yield from values_in(item)


def settled(result: Any) -> Any:
    """The result with what its values, which exist by now, stand for."""
    if isinstance(result, Value):
        return result.cell.get()
    if type(result) in (list, tuple):
        return type(result)(settled(item) for item in result)
    if type(result) is dict:
        return {key: settled(item) for key, item in result.items()}
    return result


def join(values: Any, separator: str | Expr = "") -> Expr:
    """``separator.join`` for values, expressions and strings: an expression to append; never waits."""
    from sglite.lang.ir import Concat, flatten

    ops: list[Op] = []
    for index, value in enumerate(values):
        if index:
            ops.extend(flatten(separator))
        ops.extend(flatten(value))
    return Concat(tuple(ops))
