"""EBNF: notation, left recursion and what it becomes, refusals with their place."""

from __future__ import annotations

import time
from typing import Any

import pytest
from constrained_texts import accepts, every_word

from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.ebnf import read_ebnf
from sglite.constrained.grammar import Grammar, Node, Ref, Seq, Text, children
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec
from sglite.constrained.vocab import Vocabulary

VOCAB = Vocabulary([*(bytes([i]) for i in range(256)), None], [256], lambda text: list(text.encode()))


@pytest.fixture(scope="module")
def compiler() -> Any:
    compiler = ConstraintCompiler(VOCAB)
    yield compiler
    compiler.close()


def accepted(compiler: ConstraintCompiler, grammar: str, texts: list[str]) -> list[str]:
    compiled = compiler.compile(ConstraintSpec.ebnf(grammar))
    return [text for text in texts if accepts(compiled, text)]


NOTATION: list[tuple[str, list[str], list[str]]] = [
    ('root ::= "a" item-2? # a comment\n  | "b"\nitem-2 ::= [x-z]', ["a", "ax", "b"], ["az b", "x"]),
    ('root::="a"|"b" | ("c" "d")+', ["a", "cdcd"], ["c", ""]),
    ('root ::= ws "x"{2} "y"{1,} "z"{0,1} "w"{,2} "v"{1,2}\nws ::= [ \\t\\n]*', [" xxyv", "xxyyzwwvv"], ["xyv", "xxy"]),
    (r'root ::= "\x41\u00e9\U0001F600\ud83d\ude00\n\t\"\\"', ['Aé😀😀\n\t"\\'], ["A"]),
    (r"root ::= [^a-c\]\-] [\]\\^-] .", ["d]é", "e\\\n", "f^x", "g-y"], ["a]x", "-]x"]),
    ('root ::= "" | "a" root', ["", "aaa"], ["b"]),
    ("root ::=\n  # nothing yet\n  'x'\n".replace("'", '"') + "\n\n", ["x"], [""]),
    ('root ::= a.b\na.b ::= "q"', ["q"], [""]),
]


@pytest.mark.parametrize(("grammar", "inside", "outside"), NOTATION, ids=lambda v: str(v)[:30])
def test_notation(compiler: ConstraintCompiler, grammar: str, inside: list[str], outside: list[str]) -> None:
    assert accepted(compiler, grammar, inside + outside) == inside


# a rule that begins with itself, and one that does not, of the same texts
LEFT = [
    ('root ::= root "a" | "b"', 'root ::= "b" "a"*'),
    ('root ::= (root "+")? "a"', 'root ::= "a" ("+a")*'),
    ('root ::= e\ne ::= e "+" t | e "-" t | t\nt ::= "a" | "b"', 'root ::= t ([+-] t)*\nt ::= "a" | "b"'),
    ('root ::= "a"? root "b" | "+"', 'root ::= x "b"*\nx ::= "a" root "b" | "+"'),
    ('root ::= root | "a"', 'root ::= "a"'),
    ('root ::= root root "b" | "a"', 'root ::= "a" (root "b")*'),
    ('root ::= (root "a")* "b"', 'root ::= "b" ("a" (root "a")* "b")*'),
    ('root ::= "b" | (root | root "+") "a"', 'root ::= "b" ("+"? "a")*'),
    ('root ::= (root "a"){2} "b" | "+"', 'root ::= "+" ("a" root "ab")*'),
]


@pytest.mark.parametrize(("left", "right"), LEFT)
def test_direct_left_recursion_is_a_repetition(compiler: ConstraintCompiler, left: str, right: str) -> None:
    texts = every_word("ab+", 5 if '"+"' in left else 7)
    found = accepted(compiler, left, texts)
    assert found == accepted(compiler, right, texts) and found


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('root ::= a\na ::= b "x" | "y"\nb ::= a "z" | "w"', r"line 2 column 1: left recursion \(a -> b -> a: "),
        ('root ::= n root "b" | "c"\nn ::= "q"?', r"line 1 column 1: left recursion \(root -> root: .*can be empty"),
        ('root ::= n root "b" | "c"\nn ::= m\nm ::= root?', r"left recursion \(.* -> "),
        ('root ::= "a" (= "b")', "line 1 column 14: lookahead"),
        ('root ::= TagDispatch("a")', "the extension 'TagDispatch'"),
        ('root ::= "a"{2,70000}', "a repetition of 70000, more than 65536"),
        ("root ::= " + "(" * 60, "nesting deeper than 48"),
    ],
)
def test_what_is_not_enforced_is_refused(grammar: str, message: str) -> None:
    with pytest.raises(ConstraintRefused, match=message) as caught:
        read_ebnf(grammar)
    assert caught.value.keyword == "ebnf" and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("", "no rule named 'root'"),
        ('a ::= "x"', "no rule named 'root'"),
        ("root ::= x", "line 1 column 10: the rule 'x' is not defined"),
        ('root ::= "a"\nroot ::= "b"', "line 2 column 1: the rule 'root' is defined twice"),
        ('root ::= "a', 'line 1 column 10: missing "'),
        ("root ::= [a", "missing ]"),
        ('root ::= ("a"', r"missing \)"),
        ('root ::= "a")', "expected 'name ::='"),
        ('root ::= "a"**', "a quantifier follows a quantifier"),
        ('root ::= "a"{3,2}', "the wrong way round"),
        ("root ::= [b-a]", "the wrong way round"),
        (r'root ::= "\ud800"', "half a surrogate pair"),
        (r'root ::= "\ud800\u0041"', "no other half follows"),
        (r'root ::= "\x4"', "not 2 hexadecimal digits"),
        (r'root ::= "\U00110000"', "past the last character"),
        ("root ::= %", "unexpected '%'"),
    ],
)
def test_a_broken_grammar_is_told_with_line_and_column(grammar: str, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        read_ebnf(grammar)


BOMBS = [
    "root ::= " + "root? " * 5000 + '"x"',
    "\n".join(f"r{i} ::= r{i + 1}" for i in range(15000)) + '\nr15000 ::= "x"?\nroot ::= r0',
    "\n".join(f"r{i} ::= r{i + 1}" for i in range(15000)) + "\nr15000 ::= root\nroot ::= r0",
    "root ::= " + "|" * 100_000,
    "root ::= " + '"a"' * 60_000,
    "root ::= [" + "a" * 100_000 + "]",
    'root ::= a\na ::= "" | ' + "a " * 5000,
    "root ::= " + "(" * 100_000,
]


@pytest.mark.parametrize("grammar", BOMBS, ids=lambda g: g[:25])
def test_a_large_grammar_is_read_or_refused_in_a_second(grammar: str) -> None:
    start = time.process_time()
    try:
        assert not begins_with_itself(read_ebnf(grammar))
    except ConstraintRefused as error:
        assert len(error.reason) < 400
    assert time.process_time() - start < 2, "on a busy machine"


def begins_with_itself(grammar: Grammar) -> bool:
    """Whether a rule's first part is itself: what a rewritten grammar must not have."""
    return any(_first(node) == Ref(name) for name, node in grammar.rules.items())


def _first(node: Node) -> Node:
    while isinstance(node, Seq) and node.items:
        node = node.items[0]
    return node


def test_the_words_of_a_rewritten_rule_keep_their_order() -> None:
    rules = read_ebnf('root ::= root "+" root | "a"').rules
    assert not begins_with_itself(Grammar(rules)) and Text("a") in children(rules["root"])
