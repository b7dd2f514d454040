"""Fsm: a deterministic automaton over characters, every state of which reaches acceptance."""

from __future__ import annotations

from sglite.constrained.fsm_partition import Partition
from sglite.constrained.fsm_terms import State, Terms, TooLarge


class Fsm:
    """States 0 (the start) to `len(accepting) - 1`, not always the fewest. -1 is the dead state.

    `rows[state]` says where class 0 of `partition` leads, and the classes that lead elsewhere.
    """

    def __init__(self, terms: Terms, max_states: int) -> None:
        self.partition: Partition = terms.partition
        self.rows: list[tuple[int, dict[int, int]]] = []
        self.accepting: list[bool] = []
        self._ranges: dict[int, list[tuple[int, int, int]]] = {}
        self._explore(terms, max_states)
        self._trim()

    def _explore(self, terms: Terms, max_states: int) -> None:
        numbers: dict[State, int] = {terms.start: 0}
        states = [terms.start]

        def number(state: State) -> int:
            found = numbers.get(state)
            if found is None:
                found = numbers[state] = len(states)
                states.append(state)
            return found

        for state in states:  # grows while it is read
            rest, by = terms.row(state)
            self.rows.append((number(rest), {each: number(target) for each, target in by.items()}))
            self.accepting.append(terms.accepts(state))
            if len(states) > max_states:
                raise TooLarge(f"too complex: more than {max_states} states; lower the counts or simplify the patterns")

    def _trim(self) -> None:
        before: list[list[int]] = [[] for _ in self.rows]
        for state, (rest, by) in enumerate(self.rows):
            for target in {rest, *by.values()}:
                before[target].append(state)
        alive = list(self.accepting)
        waiting = [state for state, accepting in enumerate(alive) if accepting]
        while waiting:
            for state in before[waiting.pop()]:
                if not alive[state]:
                    alive[state] = True
                    waiting.append(state)
        order = [state for state, lives in enumerate(alive) if lives or state == 0]
        numbers = [-1] * len(alive)
        for number, state in enumerate(order):
            if alive[state]:
                numbers[state] = number
        self.rows = [self._renumbered(self.rows[state], numbers) for state in order]
        self.accepting = [self.accepting[state] for state in order]

    @staticmethod
    def _renumbered(row: tuple[int, dict[int, int]], numbers: list[int]) -> tuple[int, dict[int, int]]:
        rest = numbers[row[0]]
        return rest, {each: numbers[target] for each, target in row[1].items() if numbers[target] != rest}

    def step(self, state: int, char: str) -> int:
        """The state after one more character; -1 when no text goes on like that."""
        number = self.partition.of(char)
        rest, by = self.rows[state]
        return by.get(number, rest) if number >= 0 else -1

    def matches(self, text: str) -> bool:
        state = 0
        for char in text:
            state = self.step(state, char)
            if state < 0:
                return False
        return self.accepting[state]

    def is_empty(self) -> bool:
        return not self.accepting[0] and self.rows[0] == (-1, {})

    def targets(self, state: int) -> list[tuple[int, int]]:
        """(class, state) of every class that leads on, ascending."""
        rest, by = self.rows[state]
        if rest < 0:
            return sorted((number, target) for number, target in by.items() if target >= 0)
        every = ((number, by.get(number, rest)) for number in range(self.partition.count))
        return [(number, target) for number, target in every if target >= 0]

    def ranges(self, state: int) -> list[tuple[int, int, int]]:
        """(first, last, state) of the characters that lead on, ascending."""
        found = self._ranges.get(state)
        if found is None:
            rest, by = self.rows[state]
            intervals = ((low, high, by.get(number, rest)) for low, high, number in self.partition.intervals())
            found = self._ranges[state] = [(low, high, target) for low, high, target in intervals if target >= 0]
        return found

    def topological(self) -> list[int] | None:
        """The states, each before those it leads to; None when some text can be made longer for ever."""
        following = [{target for target in (rest, *by.values()) if target >= 0} for rest, by in self.rows]
        entries = [0] * len(following)
        for targets in following:
            for target in targets:
                entries[target] += 1
        order = [0] if not entries[0] else []
        for state in order:  # grows while it is read
            for target in following[state]:
                entries[target] -= 1
                if not entries[target]:
                    order.append(target)
        return order if len(order) == len(following) else None

    def alike(self) -> bool:
        """Whether the language treats all characters alike: a text belongs to it by its length alone.

        So it is when the states that one state leads to can all be taken for one (Hopcroft and Karp 1971).
        """
        dead = len(self.rows)
        leader = list(range(dead + 1))

        def find(state: int) -> int:
            while leader[state] != state:
                leader[state] = state = leader[leader[state]]
            return state

        accepting = [*self.accepting, False]
        waiting = [(rest, target) for rest, by in self.rows for target in by.values()]
        while waiting:
            left, right = (find(dead if state < 0 else state) for state in waiting.pop())
            if left == right:
                continue
            if accepting[left] != accepting[right]:
                return False
            leader[left] = right
            # What all characters lead to is one state already, so following one class is enough.
            rests = [-1 if state == dead else self.rows[state][0] for state in (left, right)]
            waiting.append((rests[0], rests[1]))
        return True
