"""Regular expressions for tests: drawn at random, listed by brute force, and built by the native code."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hypothesis import strategies as st

import sglite.constrained
from sglite.constrained import charset
from sglite.constrained.fsm import ByteFsm, Fsm
from sglite.constrained.grammar import Alt, And, Chars, Node, Not, Repeat, Seq, Text

ANY = Chars(charset.EVERY)
CSRC = Path(sglite.constrained.__file__).parent / "csrc"
DRIVER = Path(__file__).parent / "constrained_automata.cpp"

PLAIN_LEAVES = [Text(""), Text("a"), Text("ab"), Text("ba"), Chars(charset.of("ab")), Chars(charset.of("b")), ANY]
ODD_LEAVES = [
    Chars(()),
    Chars(charset.complement(charset.of("a"))),
    Text('"\\/\b\n\x00\x1f'),
    Chars(charset.of('\n"\\')),
    Text("nn"),
    Text("\\"),
    Text("u0001"),
    Text("0001"),
    Chars(charset.of("\x01n")),
    Chars(charset.of("aé中😀")),
    Chars(((0x7F, 0x900), (0x10000, 0x1F600))),
    Chars(((0, 0x1F),)),
    Text("\ud800"),
]


def _combined(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    items = st.lists(inner, max_size=3).map(tuple)
    counts = st.tuples(st.integers(0, 3), st.sampled_from([None, -1, 0, 1, 2]))
    return st.one_of(
        items.map(Seq),
        items.map(Alt),
        items.map(And),
        inner.map(Not),
        st.tuples(inner, counts).map(
            lambda drawn: Repeat(drawn[0], drawn[1][0], None if drawn[1][1] is None else max(0, sum(drawn[1])))
        ),
    )


def nodes(leaves: list[Node], max_leaves: int = 6) -> st.SearchStrategy[Node]:
    """Regular nodes of every kind, contradictions and empty parts included."""
    return st.recursive(st.sampled_from(leaves), _combined, max_leaves=max_leaves)


def words(alphabet: str, longest: int) -> frozenset[str]:
    return frozenset("".join(p) for n in range(longest + 1) for p in itertools.product(alphabet, repeat=n))


def language(node: Node, universe: frozenset[str]) -> frozenset[str]:
    """The texts of `node` among `universe`, which holds every part of its words. By definition, one set at a time."""
    if isinstance(node, Text):
        return universe & {node.text}
    if isinstance(node, Chars):
        return frozenset(w for w in universe if len(w) == 1 and charset.contains(node.ranges, ord(w)))
    if isinstance(node, Seq):
        found = frozenset({""})
        for item in node.items:
            found = _joined(found, language(item, universe), universe)
        return found
    if isinstance(node, Alt):
        return frozenset().union(*(language(item, universe) for item in node.items))
    if isinstance(node, And):
        return universe.intersection(*(language(item, universe) for item in node.items))
    if isinstance(node, Not):
        return universe - language(node.item, universe)
    assert isinstance(node, Repeat)
    item, power, found = language(node.item, universe), frozenset({""}), frozenset[str]()
    longest = max(map(len, universe))
    for count in range(node.low + longest + 1 if node.high is None else node.high + 1):
        found |= power if count >= node.low else frozenset()
        power = _joined(power, item, universe)
    return found


def _joined(left: frozenset[str], right: frozenset[str], universe: frozenset[str]) -> frozenset[str]:
    return frozenset(a + b for a in left for b in right) & universe


class NativeRefused(Exception):
    pass


@dataclass(frozen=True)
class NativeDfa:
    """What build_dfa returns."""

    start: int
    states: int
    class_of: list[int]
    rows: list[list[int]]
    accepting: list[int]
    distance: list[int]

    def matches(self, data: bytes) -> bool:
        state = self.start
        for byte in data:
            state = self.rows[state][self.class_of[byte]]
            if state < 0:
                return False
        return bool(self.accepting[state])


class Native:
    """build_dfa, compiled once."""

    def __init__(self) -> None:
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", f"-I{CSRC}"]
        with tempfile.TemporaryDirectory() as folder:
            library = str(Path(folder) / "automata.so")
            subprocess.run(["g++", *flags, str(DRIVER), "-o", library], check=True, timeout=100)
            self._build = ctypes.CDLL(library).build
        self._build.restype = ctypes.c_long

    def build(self, node: Node, json: bool = False, max_states: int = 60_000, max_work: int = 40_000_000) -> NativeDfa:
        encoded = [1, 0, *_stream(node)]
        stream = (ctypes.c_int32 * len(encoded))(*encoded)
        room = 4_000_000
        out = (ctypes.c_int32 * room)()
        reason = ctypes.create_string_buffer(500)
        limits = ctypes.c_size_t(max_states), ctypes.c_size_t(max_work)
        count = self._build(
            stream, ctypes.c_size_t(len(encoded)), int(json), *limits, out, ctypes.c_size_t(room), reason, 500
        )
        if not count:
            raise NativeRefused(reason.value.decode())
        assert count <= room
        start, states, classes = out[:3]
        end = 259 + states * classes
        rows = [out[at : at + classes] for at in range(259, end, classes)]
        return NativeDfa(start, states, out[3:259], rows, out[end : end + states], out[end + states : count])


@cache
def native_automata() -> Native:
    return Native()


def _stream(node: Node) -> list[int]:
    if isinstance(node, Text):
        return [0, 0, 0, len(node.text), *map(ord, node.text), 0]
    if isinstance(node, Chars):
        return [1, 0, 0, 2 * len(node.ranges), *(code for pair in node.ranges for code in pair), 0]
    if isinstance(node, Seq | Alt | And):
        kids = [code for item in node.items for code in _stream(item)]
        return [{Seq: 2, Alt: 3, And: 5}[type(node)], 0, 0, 0, len(node.items), *kids]
    if isinstance(node, Repeat):
        return [4, node.low, -1 if node.high is None else node.high, 0, 1, *_stream(node.item)]
    assert isinstance(node, Not)
    return [6, 0, 0, 0, 1, *_stream(node.item)]


def assert_same(dfa: NativeDfa, table: Fsm, json: bool) -> None:
    """Walk both at once: byte for byte, a text goes on and ends in one where it does in the other.

    A byte automaton that remembers the bytes of half a character has thousands of states that are one natively; two
    of a kind are followed.
    """
    plain = ByteFsm(table, json)
    waiting = [(plain.start, dfa.start)]
    followed: dict[tuple[int, object], int] = {}
    for at, state in waiting:  # grows while it is read
        assert plain.accepting(at) == dfa.accepting[state]
        for byte in range(256):
            to, target = plain.step(at, byte), dfa.rows[state][dfa.class_of[byte]]
            assert (to < 0) == (target < 0), f"byte {byte:#x}"
            if to >= 0:
                kind = (target, plain.kind(to))
                followed[kind] = followed.get(kind, 0) + 1
                if followed[kind] <= 2:
                    waiting.append((to, target))


def smallest(dfa: NativeDfa) -> int:
    """How many states the smallest automaton has (Moore 1956)."""
    blocks = list(dfa.accepting)
    while True:
        rows = [(blocks[s], *(-1 if to < 0 else blocks[to] for to in dfa.rows[s])) for s in range(dfa.states)]
        numbers: dict[tuple[int, ...], int] = {}
        finer = [numbers.setdefault(row, len(numbers)) for row in rows]
        if len(numbers) == len(set(blocks)):
            return len(numbers)
        blocks = finer
