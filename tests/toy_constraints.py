"""Constraints over token ids, for engines with a scripted worker: elements, guarded values, texts without end."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from sglite.constrained import bitmask
from sglite.constrained.matcher import run_follows_each
from sglite.constrained.spec import ConstraintRefused, ConstraintSpec
from sglite.constrained.vocab import Vocabulary

VOCAB = 64

WILD = "*"
"""An element of a toy constraint: any of the tokens 0 to 4."""
NEXT = "+"
"""The token before plus one, modulo 5: forced, and only right for who knows what was sampled."""
MANY = "~"
"""Any number of the tokens 0 to 4, then 5: a text that goes on for as long as one likes."""
END_MANY = 5
TOY_BUDGET = 40
"""Values that a toy constraint takes back before it gives up."""


@dataclass(frozen=True)
class _Place:
    """An element, and the guarded value that it is part of: its first place, its last, what its sum is divided by."""

    element: str
    first: int = -1
    last: int = -1
    modulus: int = 1


def _places(elements: Sequence[str]) -> list[_Place]:
    """``<`` and ``>m`` around elements: the sum of their tokens is a multiple of ``m``, which shows at the end."""
    places: list[_Place] = []
    opened = -1
    for element in elements:
        if element == "<":
            opened = len(places)
        elif element.startswith(">"):
            modulus, last = int(element[1:]), len(places) - 1
            places[opened:] = [_Place(place.element, opened, last, modulus) for place in places[opened:]]
            opened = -1
        else:
            places.append(_Place(element))
    assert opened == -1 and MANY not in [place.element for place in places if place.modulus > 1]
    return places


class ToyMatcher:
    """A constraint over token ids, one element a token: ``"* + 7 1|3 < * + >3 ~"``; then nothing, or an end token.

    Keeps what it accepted, so that a test can compare it with the output of its request.
    """

    def __init__(
        self,
        elements: list[str],
        eos_ids: tuple[int, ...] = (),
        jump_forward: bool = True,
        close_at: int | None = None,
    ) -> None:
        self.places = _places(elements)
        self.eos_ids = eos_ids
        self.jump_forward = jump_forward
        self.close_at = close_at
        self.closed_from: int | None = None
        self.taken: list[int] = []
        self.failed: set[tuple[int, ...]] = set()
        """Outputs that lead nowhere."""
        self._at = [0]
        """The place of every token taken, and of the next one."""

    def fork(self) -> ToyMatcher:
        copy = ToyMatcher([], self.eos_ids, self.jump_forward, self.close_at)
        copy.places, copy.closed_from = self.places, self.closed_from
        copy.taken, copy.failed, copy._at = list(self.taken), set(self.failed), list(self._at)
        return copy

    def _choices(self) -> set[int]:
        """Tokens that may come next, were there all the room in the world."""
        at = self._at[-1]
        if at >= len(self.places):
            return set(self.eos_ids)
        place = self.places[at]
        if place.element == WILD:
            choices = set(range(5))
        elif place.element == NEXT:
            choices = {(self.taken[-1] + 1) % 5 if self.taken else 0}
        elif place.element == MANY:
            choices = {*range(5), END_MANY}
        else:
            choices = {int(token) for token in place.element.split("|")}
        if at == place.last:
            value = self.taken[len(self.taken) - (at - place.first) :]
            choices = {token for token in choices if (sum(value) + token) % place.modulus == 0}
        return {token for token in choices if (*self.taken, token) not in self.failed}

    def _after(self, token: int) -> int:
        at = self._at[-1]
        stays = at < len(self.places) and self.places[at].element == MANY and token != END_MANY
        return at if stays else at + 1

    def allowed(self) -> set[int]:
        """Tokens that may come next."""
        choices = self._choices()
        if self.close_at is None:
            return choices
        room = self.close_at - len(self.taken) - 1
        return {token for token in choices if len(self.places) - self._after(token) <= room or token in self.eos_ids}

    def fill(self, mask) -> bool:
        mask[:] = 0
        bitmask.allow(mask, self.allowed())
        return True

    def accept(self, token_id: int) -> bool:
        if self.finished or token_id not in self.allowed():
            return False
        if self.closed_from is None and self.allowed() != self._choices():
            self.closed_from = len(self.taken)
        self._at.append(self._after(token_id))
        self.taken.append(token_id)
        return True

    def rollback(self, n: int) -> None:
        for _ in range(n):
            self.taken.pop()
            self._at.pop()
        if self.closed_from is not None and self.closed_from >= len(self.taken):
            self.closed_from = None

    def forced(self, limit: int = 64) -> list[int]:
        ahead = self.fork()
        while self.jump_forward and len(ahead.taken) < len(self.taken) + limit and not ahead.accepting:
            allowed = ahead.allowed()
            if len(allowed) != 1:
                break
            ahead.accept(next(iter(allowed)))
        return ahead.taken[len(self.taken) :]

    @property
    def held(self) -> int:
        at = self._at[-1]
        return at - self.places[at].first if at < len(self.places) and self.places[at].modulus > 1 else 0

    @property
    def stuck(self) -> bool:
        return not self.finished and not self.allowed()

    def charge(self, n: int) -> None:
        if self.close_at is not None:
            self.close_at -= n

    def run_follows(self, mask) -> bool:
        return run_follows_each(self, mask)

    def retreat(self) -> int:
        held = self.held
        if held == 0 or len(self.failed) >= TOY_BUDGET:
            return 0
        self.failed.add(tuple(self.taken))
        self.rollback(held)
        return held

    @property
    def error(self) -> str | None:
        return "a toy value cannot end right" if self.stuck else None

    @property
    def accepting(self) -> bool:
        return self._at[-1] >= len(self.places)

    @property
    def finished(self) -> bool:
        return self._at[-1] >= len(self.places) + (1 if self.eos_ids else 0)


class ToyCompiler:
    """Compiles ``ConstraintSpec.regex`` texts into toy constraints: at once, or when ``release`` is called.

    The text ``refused`` is refused and ``broken`` fails in an unforeseen way.
    """

    def __init__(self, eos_ids: tuple[int, ...] = (), slow: bool = False) -> None:
        self.eos_ids = eos_ids
        self.slow = slow
        self.pending: list[tuple[ConstraintSpec, Future]] = []
        self.matchers: list[ToyMatcher] = []
        self.closed = False
        pieces = [bytes([65 + token]) for token in range(VOCAB)]
        self.vocab = Vocabulary(pieces, eos_ids or (VOCAB - 1,), lambda text: [ord(c) - 65 for c in text], VOCAB)

    def submit(self, spec: ConstraintSpec) -> Future:
        future: Future = Future()
        self.pending.append((spec, future))
        if not self.slow:
            self.release()
        return future

    def release(self) -> None:
        """Finish everything that is being compiled."""
        pending, self.pending = self.pending, []
        for spec, future in pending:
            if spec.value == "refused":
                future.set_exception(ConstraintRefused("a toy that is refused"))
            elif spec.value == "broken":
                future.set_exception(KeyError("compiler bug"))
            else:
                future.set_result(_Compiled(self, spec.value.split()))

    def counts(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self.closed = True


class _Compiled:
    def __init__(self, compiler: ToyCompiler, elements: list[str]) -> None:
        self._compiler = compiler
        self._elements = elements

    def shortest_tokens(self) -> int:
        return len(_places(self._elements))

    def matcher(self, jump_forward: bool = True, close_at: int | None = None) -> ToyMatcher:
        matcher = ToyMatcher(self._elements, self._compiler.eos_ids, jump_forward, close_at)
        self._compiler.matchers.append(matcher)
        return matcher
