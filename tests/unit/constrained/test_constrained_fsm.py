"""Regular languages: known answers, known sizes, and a quick refusal of what would take too long."""

from __future__ import annotations

import gc
import resource
import shutil
import threading
import time

import pytest
from constrained_automata import ANY, Native, NativeRefused, native_automata

from sglite.constrained import charset, fsm
from sglite.constrained.grammar import Alt, And, Chars, Node, Not, Ref, Repeat, Seq, Text
from sglite.constrained.spec import ConstraintRefused

A = Text("a")
LOWER = Chars(charset.make([(97, 122)]))
DIGIT = Chars(charset.make([(48, 57)]))
HEX = Chars(charset.of("0123456789abcdefABCDEF"))
TEXT = Repeat(ANY, 0, None)
NAMES = Alt(tuple(Text(f"name_{i}") for i in range(200)))


def unicode_words() -> Chars:
    return Chars(charset.make((code, code) for code in range(0x110000) if chr(code).isalnum()))


@pytest.fixture(scope="module")
def native() -> Native:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    return native_automata()


def test_finite_lists_in_the_order_written_or_the_shorter_first() -> None:
    assert fsm.finite(Alt((Text("pear"), A, Text("pear"))), 5) == ["pear", "a"]
    assert fsm.finite(Seq((Alt((Text("x"), A)), Repeat(DIGIT, 1, 1))), 19) is None
    assert fsm.finite(And((Repeat(Chars(charset.of("ab")), 0, 2), Not(Text("ab")))), 6) == [
        "",
        "a",
        "b",
        "aa",
        "ba",
        "bb",
    ]
    assert fsm.finite(And((NAMES, Seq((TEXT, Text("99"))))), 10) == ["name_99", "name_199"]
    assert fsm.finite(Repeat(A, 0, None), 1000) is None
    assert fsm.finite(Repeat(A, 3, 100_000), 5) is None
    assert fsm.finite(Alt(()), 0) == [] == fsm.finite(And((A, Text("b"))), 0)


def test_lengths() -> None:
    assert fsm.lengths(Seq((A, Repeat(LOWER, 3, 7)))) == (4, 8)
    assert fsm.lengths(And((Repeat(LOWER, 2, None), Repeat(ANY, 0, 9), Not(Text("zz"))))) == (2, 9)
    assert fsm.lengths(And((Repeat(LOWER, 2, None), Not(Text("zz"))))) == (2, None)
    assert fsm.lengths(Alt(())) == (1, 0) == fsm.lengths(And((A, Not(A))))
    assert fsm.lengths(Repeat(Repeat(A, 65_536, 65_536), 65_536, None)) == (65_536**2, None)


def test_a_witness_is_printable_where_it_can_be() -> None:
    assert fsm.shortest(Repeat(ANY, 3, None)) == "   "
    assert fsm.shortest(And((Repeat(ANY, 2, None), Not(Repeat(Text(" "), 0, None))))) is not None
    assert fsm.shortest(And((TEXT, Not(TEXT)))) is None


def test_relations() -> None:
    words = Repeat(LOWER, 1, None)
    assert fsm.intersects(words, Seq((TEXT, Text("x")))) and not fsm.intersects(words, Seq((Text("x-"), TEXT)))
    assert fsm.includes(Repeat(ANY, 0, 64), Repeat(LOWER, 3, 10)) and not fsm.includes(Repeat(LOWER, 3, 10), words)
    assert fsm.includes(TEXT, Not(words)) and fsm.includes(Not(words), NAMES)
    assert not fsm.is_empty(And((Not(NAMES), Not(Seq((Text("x-"), TEXT))))))


def test_only_regular_nodes_are_answered_for() -> None:
    for ask in (fsm.is_empty, fsm.shortest, fsm.lengths, fsm.compile_expr):
        with pytest.raises(TypeError, match="Ref is not regular"):
            ask(Seq((A, Ref("rule"))))


def test_one_language_may_be_asked_about_by_several_threads() -> None:
    node = And((Repeat(Alt((A, Text("bb"), Text("ca"))), 0, 40), Not(Seq((TEXT, Text("aaa"), TEXT)))))
    whole = Seq((node,))  # an expression that is not taken apart, so that the threads meet in one automaton
    texts = ["bbca" * n + "a" * (n % 4) for n in range(24)]
    wanted = [n % 4 < 2 and 2 * n + n % 4 <= 40 for n in range(24)]
    answers: list[list[bool]] = []

    def ask() -> None:
        answers.append([fsm.matches(whole, text) for text in texts])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [wanted] * 4


COUNTS: list[tuple[str, Node, bool, int]] = [
    ("three letters", Text("abc"), False, 4),
    ("quoted", Text("abc"), True, 6),
    ("uuid", Seq((Repeat(HEX, 8, 8), Repeat(Seq((Text("-"), Repeat(HEX, 4, 4))), 4, 4), Repeat(HEX, 8, 8))), False, 37),
    ("any character", ANY, False, 9),  # two ends and seven ways to be inside of one
    ("any text", TEXT, False, 8),
    ("counted", Repeat(LOWER, 3, 10), False, 11),
    ("counted, in two ways", Alt((Repeat(LOWER, 3, 7), Repeat(LOWER, 6, 10))), False, 11),
    ("counts of counts", Repeat(Repeat(LOWER, 0, 30), 0, 30), False, 901),
    ("ambiguous counts", Repeat(Seq((Repeat(LOWER, 1, None), Repeat(Text(" "), 0, 1))), 0, 200), False, 401),
    ("stars of stars", Repeat(Repeat(Alt((A, Text("aa"))), 0, None), 1000, 1000), False, 1),
    ("a nothing less", And((Not(Not(A)), Repeat(ANY, 0, 10**6))), False, 2),
    # After `"a` and after `"\` the same follows.
    ("escapes or letters", Alt((Text("\n"), Text("an"), Text("au000a"), Text("au000A"))), True, 9),
    ("seventh from the end", Seq((Repeat(Chars(charset.of("ab")), 0, None), A, Repeat(Chars(charset.of("ab")), 6, 6))),
     False, 128),
]  # fmt: skip


@pytest.mark.parametrize(("node", "json", "states"), [case[1:] for case in COUNTS], ids=[case[0] for case in COUNTS])
def test_native_automata_of_known_sizes(native: Native, node: Node, json: bool, states: int) -> None:
    assert native.build(node, json).states == states


BOUNDS = [(low, high) for low in range(4) for high in (*range(low, low + 3), None)]


def test_counts_of_counts_leave_out_what_they_leave_out(native: Native) -> None:
    for least, most in BOUNDS:
        for low, high in BOUNDS:
            node = Repeat(Repeat(A, least, most), low, high)
            sums = {0} if low == 0 else set[int]()
            for times in range(max(low, 1), 13 if high is None else high + 1):
                sums.update(range(times * least, 13 if most is None else times * most + 1))
            dfa = native.build(node)
            for length in range(13):
                belongs = length in sums
                assert dfa.matches(b"a" * length) == belongs == fsm.matches(node, "a" * length), (node, length)


def test_lengths_beside_other_conditions(native: Native) -> None:
    either = Alt((A, Text("aaa"), Repeat(Text("aaaa"), 2, 2)))
    for core in (Repeat(A, 0, None), Repeat(Text("aa"), 1, 4), either, Seq((either, Repeat(Text("aa"), 0, None)))):
        for low, high in [*BOUNDS, (5, 9), (9, 5), (8, None)]:
            node = And((Repeat(ANY, low, None), core, Repeat(ANY, 0, high)))
            wanted = [n for n in range(13) if low <= n <= (12 if high is None else high) and fsm.matches(core, "a" * n)]
            table = fsm.compile_expr(node)
            assert [n for n in range(13) if table.matches("a" * n)] == wanted
            try:
                dfa = native.build(node)
            except NativeRefused:
                assert not wanted
            else:
                assert [n for n in range(13) if dfa.matches(b"a" * n)] == wanted


def test_equal_languages_give_equal_automata(native: Native) -> None:
    one = Seq((A, Repeat(Seq((Text("b"), A)), 0, None)))
    other = And((Seq((Repeat(Seq((A, Text("b"))), 0, None), A)), Not(Text("b")), Not(NAMES)))
    assert native.build(one) == native.build(other)


def test_all_characters_alike_is_a_matter_of_the_language(native: Native) -> None:
    spelled = b'"\\u0061\\uD83D\\ude00\\/"'
    for node in (Repeat(ANY, 3, 3), And((TEXT, Not(Alt((Repeat(ANY, 0, 2), Repeat(ANY, 4, None)))))), Alt((A, TEXT))):
        assert native.build(node, json=True).matches(spelled)
        assert fsm.ByteFsm(fsm.compile_expr(node), json=True).matches(spelled)
    for broken in (
        b'"\\uD83D"',
        b'"\\ude00"',
        b'"\\uD83D\\u0061"',
        b'"\xed\xa0\x80"',
        b'"\x1f"',
        b'"\\x"',
        b'"\xc0\x80"',
    ):
        assert not native.build(TEXT, json=True).matches(broken)
        assert not fsm.ByteFsm(fsm.compile_expr(TEXT), json=True).matches(broken)
    assert not native.build(Repeat(LOWER, 0, None), json=True).matches(b'"\\u0061"')


def bombs() -> dict[str, Node]:
    ab = Chars(charset.of("ab"))
    ends = [
        Seq((TEXT, Chars(charset.of(c)), Repeat(ANY, 8, 8), Repeat(Text(d), 0, None)))
        for c, d in zip("abcdef", "xyzuvw", strict=True)
    ]
    maybe, maybe_b = Repeat(A, 0, 1), Repeat(Text("b"), 0, 1)
    return {
        "twentieth from the end": Seq((Repeat(ab, 0, None), A, Repeat(ab, 20, 20))),
        "not the twentieth from the end": Not(Seq((TEXT, A, Repeat(ANY, 20, 20)))),
        "a million": Repeat(Repeat(Repeat(A, 0, 100), 0, 100), 0, 100),
        "powers of counts": Repeat(Repeat(Repeat(Text("ab"), 2, 65_536), 2, 65_536), 2, 65_536),
        "either of two, often": Seq((Repeat(Seq((maybe, maybe_b)), 5000, 5000), Repeat(A, 5000, 5000))),
        "intersections": And(tuple(ends)),
        "copies of an intersection": Repeat(And((Repeat(ab, 1, 90), Not(Seq((TEXT, Text("bb"), TEXT))))), 0, 3000),
        "wide and long": Repeat(unicode_words(), 3, 4000),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(bombs()))
def test_bombs_are_refused_quickly(native: Native, name: str) -> None:
    node = bombs()[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for json in (False, True):
        start = time.thread_time()
        with pytest.raises(NativeRefused, match=r"too complex: .*; lower the counts or simplify the patterns"):
            native.build(node, json)
        assert time.thread_time() - start < 1.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


@pytest.mark.parametrize("name", [name for name in bombs() if name != "wide and long"])
def test_bombs_are_refused_in_python_too(name: str) -> None:
    start = time.thread_time()
    with pytest.raises(fsm.TooLarge, match=r"too (complex|large): .*; (lower the counts|simplify)") as caught:
        fsm.compile_expr(bombs()[name])
    assert isinstance(caught.value, ConstraintRefused)
    assert time.thread_time() - start < 6


def test_work_within_the_limits_is_done_quickly(native: Native) -> None:
    """Ten times what it takes on the machine this was written on, so that only another order of growth fails."""
    email = Seq((Repeat(LOWER, 1, None), Text("@"), Repeat(Seq((Repeat(LOWER, 1, None), Text("."))), 1, None), LOWER))
    for node, limit_ms in ((Repeat(LOWER, 0, 9_999), 50), (And((email, Repeat(ANY, 0, 64))), 10), (Not(NAMES), 20)):
        gc.disable()  # one collection of everything that other tests have left behind takes a second
        try:
            start = time.thread_time()
            native.build(node, json=True)
            took = time.thread_time() - start
        finally:
            gc.enable()
        assert took * 1000 < limit_ms + 100  # reading the answer into Python
