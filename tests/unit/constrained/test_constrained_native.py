"""The native engine beyond what all engines share: how its library comes to be, and that it may forget at any time."""

from __future__ import annotations

import json
import random
import threading
import time

import numpy as np
import pytest

from sglite.constrained import bitmask
from sglite.constrained.charset import EVERY, make
from sglite.constrained.engines import native_build
from sglite.constrained.engines.native import NativeEngine, NativeMatcher
from sglite.constrained.grammar import (
    Alt,
    Chars,
    Grammar,
    Guard,
    JsonString,
    Node,
    Ref,
    Repeat,
    Scope,
    Text,
    Unique,
    alt,
    optional,
    repeat,
    seq,
)
from sglite.constrained.spec import ConstraintRefused
from tests.constrained_walks import small_vocabulary

ANY_STRING = JsonString(Repeat(Chars(EVERY), 0, None))
DIGIT = Chars(make([(48, 57)]))


def names_and_numbers() -> Grammar:
    """Nested objects with distinct names, and arrays of digits whose sum is even."""
    value = alt([Ref("object"), Guard(Ref("array"), 0), DIGIT])
    entry = seq(Unique(ANY_STRING, safe=True), Text(": "), Ref("value"))
    rules: dict[str, Node] = {
        "root": Ref("object"),
        "value": value,
        "object": Scope(seq(Text("{"), optional(seq(entry, repeat(seq(Text(", "), entry), 0, None))), Text("}"))),
        "array": seq(Text("["), DIGIT, repeat(seq(Text(","), DIGIT), 0, 5), Text("]")),
    }
    return Grammar(rules, checks=(lambda text: sum(json.loads(text)) % 2 == 0,))


def mask_of(matcher: NativeMatcher, words: int) -> bytes:
    mask = np.zeros(words, dtype=np.int32)
    matcher.fill(mask)
    return mask.tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_a_program_that_forgets_its_states_says_the_same(seed: int) -> None:
    vocab = small_vocabulary()
    keeps = NativeEngine(vocab).compile(names_and_numbers()).raw_matcher()
    forgets = NativeEngine(vocab, max_states=20).compile(names_and_numbers()).raw_matcher()
    rng = random.Random(seed)
    for _ in range(120):
        seen = mask_of(keeps, vocab.words)
        assert seen == mask_of(forgets, vocab.words)
        assert keeps.held() == forgets.held()
        allowed = [i for i in range(vocab.size) if seen[i // 8] >> i % 8 & 1 and i not in vocab.eos_ids]
        if not allowed or (keeps.num_accepted > 3 and rng.random() < 0.15):
            back = rng.randint(0, min(3, keeps.num_accepted))
            keeps.rollback(back)
            forgets.rollback(back)
            continue
        token = rng.choice(allowed)
        assert keeps.accept(token)
        assert forgets.accept(token)
    assert keeps.text == forgets.text


def test_left_recursion_and_emptiness_are_refused() -> None:
    engine = NativeEngine(small_vocabulary())
    with pytest.raises(ConstraintRefused, match="left recursion"):
        engine.compile(Grammar({"root": alt([seq(Ref("root"), Text("a")), Text("a")])}))
    with pytest.raises(ConstraintRefused, match="matches nothing"):
        engine.compile(Grammar({"root": seq(Text("a"), Ref("never")), "never": Alt(())}))


def test_matchers_of_one_program_work_on_several_threads() -> None:
    vocab = small_vocabulary()
    program = NativeEngine(vocab).compile(names_and_numbers())
    text = b'{"ab": {"name": [1,2,3]}, "id": 7}'
    results: list[list[bytes]] = []

    def walk() -> None:
        matcher = program.raw_matcher()
        masks = []
        for byte in text:
            masks.append(mask_of(matcher, vocab.words))
            assert matcher.accept(byte)
        results.append(masks)

    threads = [threading.Thread(target=walk) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(masks == results[0] for masks in results)


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("SGLITE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(native_build.NativeUnavailable, match=r"install g\+\+"):
        native_build.build(native_build.cache_folder())


def test_the_library_is_built_once() -> None:
    folder = native_build.cache_folder()
    path = native_build.build(folder)
    before = path.stat().st_mtime_ns
    assert native_build.build(folder) == path
    assert path.stat().st_mtime_ns == before


def test_a_text_too_long_to_be_written_out_is_known_before_it_is_written() -> None:
    def doubled(times: int) -> NativeMatcher:
        rules: dict[str, Node] = {f"r{i}": seq(Ref(f"r{i - 1}"), Ref(f"r{i - 1}")) for i in range(1, times + 1)}
        rules |= {"r0": alt([Text("yes"), Text("no")]), "root": Ref(f"r{times}")}
        return NativeEngine(small_vocabulary()).compile(Grammar(rules)).raw_matcher()

    assert doubled(8).shortest() == b"no" * 2**8
    started = time.process_time()
    assert doubled(40).shortest() is None
    assert time.process_time() - started < 1


def test_a_large_grammar_has_looked_ahead_when_it_is_compiled() -> None:
    vocab, names = small_vocabulary(), [f"r{i}" for i in range(2000)]
    rules: dict[str, Node] = {name: Text(f"word {i}") for i, name in enumerate(names)}
    program = NativeEngine(vocab).compile(Grammar({"root": alt([Ref(name) for name in names]), **rules}))
    size, matcher = program.nbytes, program.raw_matcher()
    mask = np.empty(vocab.words, dtype=np.int32)
    for _ in range(3):
        matcher.fill(mask, 8)
        matcher.fill(mask)
        assert matcher.accept(int(bitmask.to_ids(mask)[0]))
    assert program.nbytes == size > 1_000_000, "what the masks are made from was there"
