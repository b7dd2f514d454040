"""Lark's notation: the same texts as Lark's own parser, refusals with their place."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator

import lark
import numpy as np
import pytest
from constrained_texts import accepts, every_word
from hypothesis import given, settings
from hypothesis import strategies as st

from sglite.constrained import bitmask
from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.lark import read_grammar, read_lark
from sglite.constrained.lark_common import COMMON
from sglite.constrained.lark_reader import is_lark
from sglite.constrained.limits import Limits
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec
from sglite.constrained.vocab import Vocabulary

VOCAB = Vocabulary([*(bytes([i]) for i in range(256)), None], [256], lambda text: list(text.encode()))


@pytest.fixture(scope="module")
def compiler() -> Iterator[ConstraintCompiler]:
    compiler = ConstraintCompiler(VOCAB)
    yield compiler
    compiler.close()


def accepted(compiler: ConstraintCompiler, grammar: str, texts: list[str]) -> list[str]:
    try:
        compiled = compiler.compile(ConstraintSpec.ebnf(grammar))
    except ConstraintRefused as refused:
        if "matches nothing" not in str(refused):
            raise
        return []
    return [text for text in texts if accepts(compiled, text)]


def parsed(grammar: str, texts: list[str]) -> list[str]:
    """Those that Lark reads."""
    parser = lark.Lark(grammar, parser="earley", lexer="dynamic_complete")
    found = []
    for text in texts:
        try:
            parser.parse(text)
        except lark.exceptions.LarkError:
            continue
        found.append(text)
    return found


GRAMMARS: list[tuple[str, str, int]] = [
    ('start: "a" b? | C // a comment\n# and another\nb: "b"+\nC: "c".."d" "a"*', "abcd", 4),
    ('start: [x "a"] x~2 | x ~ 3..4\nx: "b"', "ab", 6),
    ('?start: a -> first\n     | "b" a -> second\n\n!a: _c\n_c.2: D\nD.-1: "d"i', "abdD", 3),
    ('start: _list{word, ","}\n_list{x, d}: x (d x)*\nword: /[ab]{2}/ | _list{"c", "d"}', "abcd,", 5),
    ('start: _pair{_pair{"a"}}\n_pair{x}: x x', "a", 6),
    ('start: "a" B\nB: "b" C?\nC: "c"\n%ignore " "', "abc ", 6),
    ('start: "(" start ")" | /a/\n%ignore / +/\n%ignore "-"', "(a) -", 5),
    ('start: sum\nsum: sum "+" num | num\nnum: /[01]/\n%ignore WS\n%import common.WS_INLINE -> WS', "1+ \t", 5),
    ("%import common (INT, LCASE_LETTER)\nstart: (INT | LCASE_LETTER)+ | ", "1aA", 4),
    ('start:\n  | "a"\n  | "b" ("a"\n  | "b") [ | "a" ]\n', "ab", 3),
    ('start : "a"I | "b"  "\\"" \\\n  "\\x61"\nI: "i"', 'abi"', 4),
    ('start: "a" b ")"? "("b\nb: "x"', "abx()", 4),
    ('start: /A/i "b"i ["\\\\"]', "aAbB\\", 3),
    ("start: /[^a]/ /a./s /b\\/|\\//", "ab/\n", 5),
    ('start: "a"~0..2 "b"~2', "ab", 4),
    ('start: root\nroot: "a"', "a", 2),
    ('start: A B?\nA: ("a" | "b" ["c"]) ~ 2\nB: A | "c"', "abc", 5),
]


@pytest.mark.parametrize(("grammar", "alphabet", "most"), GRAMMARS, ids=lambda v: str(v)[:30])
def test_the_texts_are_those_that_lark_reads(
    compiler: ConstraintCompiler, grammar: str, alphabet: str, most: int
) -> None:
    texts = every_word(alphabet, most)
    expected = parsed(grammar, texts)
    assert expected and is_lark(grammar)
    assert accepted(compiler, grammar, texts) == expected


@pytest.mark.parametrize(
    ("grammar", "alphabet"),
    [
        ('root ::= "a\\"" [^b] | "\\n"+ x\nx ::= [a-z\\\\] "é"?', 'a"\\\né\x01'),
        ('start: /[^a]/ X?\nX: "\\"" | "\\t"', 'a"\t\\'),
    ],
)
def test_inside_a_json_string_the_same_texts_are_escaped(
    compiler: ConstraintCompiler, grammar: str, alphabet: str
) -> None:
    plain = accepted(compiler, grammar, every_word(alphabet, 4))
    form = {"format": {"type": "grammar", "grammar": grammar, "style": "json"}}
    compiled = compiler.compile(ConstraintSpec.structural_tag(form))
    written = {text: json.dumps(text, ensure_ascii=False)[1:-1] for text in every_word(alphabet, 4)}
    assert [text for text in written if accepts(compiled, written[text])] == plain != []


CALCULATOR = """
?start: sum
      | NAME "=" sum    -> assign
?sum: product | sum "+" product -> add | sum "-" product -> sub
?product: atom | product "*" atom -> mul | product "/" atom -> div
?atom: NUMBER | "-" atom -> neg | NAME | "(" sum ")"
%import common.CNAME -> NAME
%import common.NUMBER
%import common.WS_INLINE
%ignore WS_INLINE
"""
JSON = """
?start: value
?value: object | array | ESCAPED_STRING | SIGNED_NUMBER | "true" | "false" | "null"
array: "[" [value ("," value)*] "]"
object: "{" [pair ("," pair)*] "}"
pair: ESCAPED_STRING ":" value
%import common.ESCAPED_STRING
%import common.SIGNED_NUMBER
%import common.WS
%ignore WS
"""


@pytest.mark.parametrize("grammar", [CALCULATOR, JSON, *(grammar for grammar, _, _ in GRAMMARS)], ids=lambda g: g[:20])
def test_what_is_written_is_read_by_lark(compiler: ConstraintCompiler, grammar: str) -> None:
    compiled = compiler.compile(ConstraintSpec.ebnf(grammar))
    rng, row, texts = random.Random(1), np.empty(VOCAB.words, dtype=np.int32), []
    for _ in range(300):
        matcher, data = compiled.matcher(), b""
        while len(data) < 16:
            matcher.fill(row)
            allowed = [id_ for id_ in bitmask.to_ids(row).tolist() if id_ < 127 or id_ == 256]
            if not allowed or allowed == [256] or (256 in allowed and rng.random() < 0.3):
                break
            token = rng.choice([id_ for id_ in allowed if id_ != 256])
            assert matcher.accept(token)
            data += bytes([token])
        if matcher.accepting:
            texts.append(data.decode())
    assert len(texts) > 5 and parsed(grammar, texts) == texts


@pytest.mark.parametrize("name", sorted(COMMON))
def test_common_terminals_are_larks(compiler: ConstraintCompiler, name: str) -> None:
    numbers = name in ("DECIMAL", "FLOAT", "_EXP", "NUMBER") or name.startswith("SIGNED")
    quoted = name == "ESCAPED_STRING" or "COMMENT" in name
    alphabet = "1+-.e" if numbers else '/*-#"\\\n' if quoted else "1aA_ \t\r\n"
    own = f"start: T\n%import common.{name} -> T"
    texts = every_word(alphabet, 4 if name in ("ESCAPED_STRING", "C_COMMENT") else 3)
    texts += ["/*a*/", "/***/", "/*/", "/*a*/*/", '"a\\"b"', '"a"b"', "--a"]
    texts += ["1.5e-3", "-12.", ".5", "_a1", "Ab", "\r\n\n"]
    assert accepted(compiler, own, texts) == parsed(own, texts) != []


PIECES = ['"a"', '"b"', "x", "y", "T", "/[ab]/", '("a" | x)', "[y]", "T?", "x*", '"a"~1..2', '"b"+', "_t{T}"]


@given(
    bodies=st.lists(
        st.lists(st.lists(st.sampled_from(PIECES), max_size=3), min_size=1, max_size=3), min_size=3, max_size=3
    ),
    terminal=st.sampled_from(['"a" "b"?', '"b"+', '"a".."b"', "/ba?/"]),
    ignored=st.sampled_from(["", '%ignore " "\n', "%ignore /c+/\n"]),
)
@settings(max_examples=150, deadline=None)
def test_any_small_grammar_has_larks_texts(
    compiler: ConstraintCompiler, bodies: list[list[list[str]]], terminal: str, ignored: str
) -> None:
    rules = (" | ".join(" ".join(branch) for branch in body) for body in bodies)
    named = "\n".join(f"{name}: {rule}" for name, rule in zip(("start", "x", "y"), rules, strict=True))
    grammar = f'{named}\nT: {terminal}\n_t{{z}}: z "b" | z\n{ignored}'
    texts = every_word("ab" + {"": "", "/": "c"}.get(ignored[8:9], " "), 4)
    try:
        expected = parsed(grammar, texts)
    except lark.exceptions.LarkError:  # rules that are defined twice over, by its own lights
        return
    try:
        found = accepted(compiler, grammar, texts)
    except ConstraintRefused as refused:
        assert "left recursion" in str(refused)
        return
    assert found == expected


@pytest.mark.parametrize(
    ("grammar", "error", "place"),
    [
        ("start: /a*?/", "lazy quantifier", "line 1 column 8"),
        ("start: /^a/", "anchor", "column 8"),
        ("start: A\nA: /a(?=b)/", "lookaround", "line 2 column 4"),
        ("start: /a\\b/", "word boundary", "column 8"),
        ("start: /a++/", "possessive", "column 8"),
        ("start: /a/x", "the flag 'x'", "column 8"),
        ('start: "a"\n%import python.NAME', "import from elsewhere", "line 2 column 1"),
        ('start: "a"\n%import common.NAMES', "the import of 'NAMES'", "line 2"),
        ('start: "a"\n%declare B', "%declare", "line 2"),
        ("start: a\na: b\nb: a | \"x\"", "left recursion", "line 2"),
        ('start: _a{"x"}\n_a{x}: _a{_b{x}}\n_b{x}: x', "uses of templates", "line 2"),
        ("start: " + " ".join(f'_a{{"{i}"}}' for i in range(900)) + "\n_a{x}: " + "x " * 900, "parts", "line 1"),
        ('start: "a"~99999', "a repetition of 99999", "column 11"),
        ("start: " + "(" * 60 + '"a"' + ")" * 60, "nesting deeper", "line 1"),
    ],
)  # fmt: skip
def test_what_is_not_enforced_is_refused_by_name(grammar: str, error: str, place: str) -> None:
    with pytest.raises(ConstraintRefused) as caught:
        read_lark(grammar, Limits())
    assert error in str(caught.value) and place in str(caught.value) and "not enforced" in str(caught.value)


@pytest.mark.parametrize(
    ("grammar", "error"),
    [
        ('begin: "a"', "no rule named 'start'"),
        ("start: a", "line 1 column 8: 'a' is not defined"),
        ("start: A\nA: b\nb: \"c\"", "line 2 column 4: a terminal cannot hold the rule 'b'"),
        ("start: A\nA: B\nB: A", "is part of itself"),
        ('start: x{#"a"}', "line 1 column 15: expected a name, a string or a pattern"),
        ('start{x}: x', "line 1 column 1: the rule 'start' cannot have parameters"),
        ('start: "a"\nstart: "b"', "line 2 column 1: 'start' is defined twice"),
        ('start: "a\n', 'missing "'),
        ('start: ""', "an empty string is no terminal"),
        ('start: ("a"', "line 1 column 8: missing )"),
        ('start: ["a")', "missing ]"),
        ("start: /a", "missing / at the end"),
        ("start: /(/", "line 1 column 8: "),
        ('start: "b".."a"', "the wrong way round"),
        ('start: "ab".."c"', "single characters"),
        ('start: "a"~3..2', "the wrong way round"),
        ('start: "a"+*', "a quantifier follows a quantifier"),
        ('start: _x{"a", "b"}\n_x{a}: a', "takes 1 arguments, not 2"),
        ('start: x\nx{a}: a', "takes 1 arguments, not 0"),
        ("?A: \"a\"\nstart: A", "can have neither ?, ! nor parameters"),
        ('start: "a"\n  "b"', "line 2 column 3: expected 'name:'"),
        ('start: "a" ) ', "unexpected ')'"),
        ('start: "\\xg1"', "needs its hexadecimal digits"),
        ('start: "\\ud800"', "is no character"),
        ('start: "\\U00110000"', "is no character"),
        ('start: "a" = "b"', "unexpected '='"),
        ('start: "a"\n%other x', "a directive is"),
        ('start: "a"\n%import common', "expected 'common.NAME'"),
        ('start: "a"\n%import common (INT', "missing )"),
        ('start{: "a"', "expected a name"),
        ('start{a, a}: "a"', "parameters are different names"),
    ],
)  # fmt: skip
def test_what_is_no_grammar_is_told_with_its_place(grammar: str, error: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        read_lark(grammar, Limits())
    assert error in str(caught.value)


@pytest.mark.parametrize(
    ("grammar", "of_lark"),
    [
        ('root ::= "a"', False),
        ("# a comment\nroot::=[a-z]", False),
        ('start: "a"', True),
        ('\n// a comment\n\n?start: "a"', True),
        ("%import common.INT\nstart: INT", True),
        ('_a{x, y} . 3 : "a"', True),
        ("", False),
        ("nothing at all", False),
    ],
)
def test_notations_are_told_apart(grammar: str, of_lark: bool) -> None:
    assert is_lark(grammar) is of_lark


def test_a_grammar_of_rules_written_with_two_colons_is_read_as_before() -> None:
    assert list(read_grammar('root ::= "a" | b\nb ::= [x-z]').rules) == ["root", "b"]


def spoiled(rng: random.Random, text: str) -> str:
    """``text`` with a few characters taken out, put in or written twice."""
    signs = list(text)
    for _ in range(rng.randrange(1, 5)):
        at, kind = rng.randrange(len(signs) + 1), rng.random()
        if kind < 0.4:
            del signs[at : at + rng.randrange(1, 4)]
        elif kind < 0.8:
            signs[at:at] = rng.choice('"/[](){}|*+?~.:%ignoreimport common AaBb12_\n \\->,x#')
        else:
            signs[at:at] = signs[at : at + rng.randrange(8)]
    return "".join(signs)


def test_a_spoiled_grammar_is_read_or_refused(compiler: ConstraintCompiler) -> None:
    rng, read = random.Random(3), 0
    for _ in range(1500):
        grammar = spoiled(rng, rng.choice([JSON, CALCULATOR, *(grammar for grammar, _, _ in GRAMMARS)]))
        try:
            read_lark(grammar, Limits())
            if is_lark(grammar):
                compiler.compile(ConstraintSpec.ebnf(grammar))
            read += 1
        except (ConstraintError, ConstraintRefused) as error:
            assert str(error)
    assert 50 < read < 1000


def test_a_group_may_go_on_over_lines(compiler: ConstraintCompiler) -> None:
    assert accepted(compiler, 'start: "b" (\n  "a"\n  // a comment\n  | "c" )', ["ba", "bc", "b"]) == ["ba", "bc"]


def test_a_long_text_is_read_in_time() -> None:
    """However often something is written, reading it takes about as long as it is."""
    began = time.process_time()
    read_lark('start: "a"' + "|/b/" * 60_000, Limits())
    read_lark('start: "a"\n' + "".join(f'a{i}: a{i + 1} "x"\n' for i in range(9_000)) + 'a9000: "y"', Limits())
    terminals = "".join(f"A{i}: A{i + 1}\n" for i in range(20_000))
    read_lark(f'start: A0\n{terminals}A20000: "a"', Limits())
    with pytest.raises(ConstraintError, match="line 1 column 1: expected"):
        read_lark("(" * 200_000, Limits())
    assert time.process_time() - began < 20
