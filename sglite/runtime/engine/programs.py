"""Programs as the engine knows them: what their requests have cost, and which level of the queue that puts them on.

Among requests of one priority, those of programs that have had little service go first (least attained service, in
levels as in multi-level feedback queues): nobody knows how long a program will be, but one that has been short so far
is the likelier to end soon. A level is twice as wide as the one before, so that programs of a size share one, and
there it is first come, first served. Waiting makes up for service: ``AGING_STEPS`` steps lift a request by a level,
so after ``MAX_LEVEL * AGING_STEPS`` steps nobody who comes later goes before it. Requests without a program are on
level 0.
"""

from __future__ import annotations

from collections import OrderedDict

from sglite.runtime.protocol import Accounting

MAX_PROGRAMS = 1024
"""Programs without open requests that are remembered."""
QUANTUM_TOKENS = 2048
"""Service that keeps a program on level 0: what one full step computes."""
MAX_LEVEL = 6
AGING_STEPS = 32


class Program:
    """One program: ``service`` counts the tokens computed and the tokens sampled for it, its open requests included."""

    __slots__ = ("_levelled", "accounting", "num_open", "service")

    def __init__(self, levelled: bool) -> None:
        self.accounting = Accounting()
        self.service = 0
        self.num_open = 0
        self._levelled = levelled

    @property
    def level(self) -> int:
        """0 first; ``floor(log2(1 + service / QUANTUM_TOKENS))``, bounded. Always 0 where levels are not wanted."""
        if not self._levelled or self.service < QUANTUM_TOKENS:
            return 0
        return min(MAX_LEVEL, (1 + self.service // QUANTUM_TOKENS).bit_length() - 1)

    def leave(self, accounting: Accounting) -> None:
        """One of its requests has ended and cost so much."""
        self.accounting.add(accounting)
        self.num_open -= 1


class Programs:
    """The programs heard of last, and all that have requests open.

    Args:
        levelled: whether attained service orders requests.
    """

    def __init__(self, levelled: bool) -> None:
        self._levelled = levelled
        self._known: OrderedDict[str, Program] = OrderedDict()

    def get(self, program_id: str) -> Accounting | None:
        """What the ended requests of a program have cost, its forks' common prefixes included; ``None``: unknown."""
        program = self._known.get(program_id)
        return None if program is None else program.accounting

    def enter(self, program_id: str) -> Program:
        """A request of a program has come; ``Program.leave`` must be called at its end."""
        program = self._known.get(program_id)
        if program is None:
            program = self._known[program_id] = Program(self._levelled)
        program.num_open += 1
        self._known.move_to_end(program_id)
        for _ in range(min(2, len(self._known) - MAX_PROGRAMS)):
            oldest = next(iter(self._known))
            self._known.move_to_end(oldest)
            if self._known[oldest].num_open == 0:
                del self._known[oldest]
        return program
