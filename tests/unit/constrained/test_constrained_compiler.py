"""ConstraintCompiler: one compile for equal specs, a deadline that harms nobody else, a bounded cache."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

from sglite.constrained.compiler import CompiledConstraint, ConstraintCompiler
from sglite.constrained.grammar import Grammar, Text
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec
from sglite.constrained.vocab import Vocabulary

VOCAB = Vocabulary([bytes([i]) for i in range(256)] + [None], [256], lambda text: list(text.encode()))


class Program:
    nbytes = 1

    def matcher(self) -> Any:
        raise NotImplementedError


class Engine:
    """Counts compiles; one whose text is "slow" waits for `release`."""

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.release = threading.Event()
        self.lock = threading.Lock()

    def compile(self, grammar: Grammar) -> Program:
        node = grammar.rules["root"]
        assert isinstance(node, Text)
        with self.lock:
            self.compiled.append(node.text)
        if node.text.startswith("slow"):
            self.release.wait(20)
        if node.text == "broken":
            raise ConstraintError("broken")
        return Program()

    def compile_tags(self, tag_json: str) -> Program:
        raise NotImplementedError


def spec(text: str) -> ConstraintSpec:
    return ConstraintSpec.choice([text])


def test_equal_specs_in_flight_compile_once() -> None:
    engine = Engine()
    compiler = ConstraintCompiler(VOCAB, engine=engine, workers=2)
    futures: list[Future[CompiledConstraint]] = []
    threads = [threading.Thread(target=lambda: futures.append(compiler.submit(spec("slow")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.release.set()
    assert len({id(future.result(5)) for future in futures}) == 1
    assert engine.compiled == ["slow"]
    assert compiler.compile(spec("slow")) is futures[0].result()
    assert engine.compiled == ["slow"], "the second time it comes from the cache"
    compiler.close()


def test_many_threads_and_many_specs() -> None:
    engine = Engine()
    compiler = ConstraintCompiler(VOCAB, engine=engine, workers=3)
    errors: list[BaseException] = []

    def ask(n: int) -> None:
        try:
            for i in range(40):
                assert compiler.compile(spec(f"t{(i * n) % 20}")).spec.value == f'["t{(i * n) % 20}"]'
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not errors and sorted(engine.compiled) == sorted(set(engine.compiled))
    compiler.close()


def test_a_deadline_fails_its_request_and_no_other() -> None:
    engine = Engine()
    compiler = ConstraintCompiler(VOCAB, engine=engine, deadline_s=0.2)
    slow = compiler.submit(spec("slow"))
    with pytest.raises(ConstraintRefused, match=r"took longer than 0\.2 s"):
        slow.result(5)
    assert compiler.compile(spec("quick")), "a new worker has taken the place of the stuck one"
    engine.release.set()
    assert compiler.compile(spec("slow")), "a timeout is not remembered"
    assert engine.compiled.count("slow") == 2
    compiler.close()


def test_stuck_compiles_are_bounded_and_recover() -> None:
    engine = Engine()
    compiler = ConstraintCompiler(VOCAB, engine=engine, deadline_s=0.2)
    for i in range(7):
        with pytest.raises(ConstraintRefused, match="took longer"):
            compiler.submit(spec(f"slow{i}")).result(5)
    assert len(engine.compiled) == 4, "no fifth thread is lost while four are stuck"
    waiting = compiler.submit(spec("quick"))
    engine.release.set()
    assert waiting.result(5), "a worker that comes back takes up what waits"
    compiler.close()


def test_what_waits_behind_a_stuck_compile_is_taken_up() -> None:
    engine = Engine()
    compiler = ConstraintCompiler(VOCAB, engine=engine, deadline_s=0.6)
    slow = compiler.submit(spec("slow"))
    time.sleep(0.3)
    quick = compiler.submit(spec("quick"))
    with pytest.raises(ConstraintRefused):
        slow.result(5)
    assert quick.result(5)
    engine.release.set()
    compiler.close()


def test_a_failure_is_told_and_not_remembered() -> None:
    engine = Engine()
    compiler = ConstraintCompiler(VOCAB, engine=engine)
    for _ in range(2):
        with pytest.raises(ConstraintError, match="broken"):
            compiler.compile(spec("broken"))
    assert engine.compiled == ["broken", "broken"]
    with pytest.raises(ConstraintRefused, match="matches nothing"):
        compiler.compile(ConstraintSpec.json_schema(False))
    with pytest.raises(ConstraintRefused, match="/not"):
        compiler.check(ConstraintSpec.json_schema({"not": {}}))
    compiler.close()


def test_the_cache_forgets_the_least_recently_used() -> None:
    engine = Engine()
    compiler = ConstraintCompiler(VOCAB, engine=engine, cache_entries=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        compiler.compile(spec(text))
    assert engine.compiled == ["a", "b", "c", "b"]
    compiler.close()


def test_close_refuses_what_waits() -> None:
    engine = Engine()
    compiler = ConstraintCompiler(VOCAB, engine=engine)
    running, waiting = compiler.submit(spec("slow")), compiler.submit(spec("next"))
    compiler.close()
    compiler.close()
    for future in (running, waiting):
        with pytest.raises(ConstraintRefused, match="shutting down"):
            future.result(5)
    with pytest.raises(RuntimeError, match="closed"):
        compiler.submit(spec("a"))
    engine.release.set()


def test_sizes_are_bounded() -> None:
    compiler = ConstraintCompiler(VOCAB, engine=Engine(), max_schema_bytes=100)
    with pytest.raises(ConstraintRefused, match="has 104 bytes, at most 100"):
        compiler.compile(spec("x" * 100))
    with pytest.raises(ValueError, match="must be positive"):
        ConstraintCompiler(VOCAB, deadline_s=0)
    compiler.close()


def test_a_hostile_schema_is_refused_in_time_by_the_real_engine() -> None:
    compiler = ConstraintCompiler(VOCAB, deadline_s=10)
    start = time.monotonic()
    nested: Any = {"type": "null"}
    for _ in range(16):
        nested = {"oneOf": [nested, {"type": "object", "properties": {"a": nested}, "required": ["a"]}]}
    for schema in (
        nested,
        {"type": "string", "pattern": "^(a{1,500}){1,500}$"},
        {"type": "string", "maxLength": 10**6},
    ):
        try:
            compiler.compile(ConstraintSpec.json_schema(schema))
        except ConstraintRefused as error:
            assert error.reason
    assert time.monotonic() - start < 25
    compiler.close()


def test_the_spec_and_the_compiler_module_import_no_engine() -> None:
    program = (
        "import sys, sglite.constrained.spec as s; assert not {'numpy', 'torch'} & set(sys.modules);"
        "import sglite.constrained.compiler; assert not {'torch', 'xgrammar'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_vocabulary() -> None:
    vocab = Vocabulary([b"a", None, b"", b"b"], [1, 1], lambda text: [], size=33)
    assert (vocab.size, vocab.words, vocab.eos_ids) == (33, 2, (1,))
    assert [vocab.content(i) for i in range(-1, 6)] == [None, b"a", None, None, b"b", None, None]
    assert Vocabulary([b"a", b"</s>"], [1], lambda text: []).content(1) is None, "an end of sequence is not text"
    same = Vocabulary([b"a", None, b"", b"b"], (1,), lambda text: [0], size=33)
    other = Vocabulary([b"a", None, None, b"b"], (1,), lambda text: [0], size=34)
    assert vocab.fingerprint == same.fingerprint != other.fingerprint
    for bad in ({"size": 3}, {"eos_ids": []}, {"eos_ids": [4]}, {"eos_ids": [-1]}):
        arguments: dict[str, Any] = {"eos_ids": [1], **bad}
        with pytest.raises(ValueError):
            Vocabulary([b"a", None, b"", b"b"], encode=lambda text: [], **arguments)
