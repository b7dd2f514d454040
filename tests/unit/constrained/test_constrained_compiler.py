"""ConstraintCompiler: one compile for equal specs, a deadline that harms nobody else, a bounded cache."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

from sglite.constrained.budget import Budget, OutOfTime
from sglite.constrained.compiler import CompiledConstraint, ConstraintCompiler
from sglite.constrained.grammar import Grammar, Text
from sglite.constrained.idle import NICENESS, run_idle
from sglite.constrained.limits import Limits
from sglite.constrained.lower import lower
from sglite.constrained.readings import Readings
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec
from sglite.constrained.vocab import Vocabulary

VOCAB = Vocabulary([bytes([i]) for i in range(256)] + [None], [256], lambda text: list(text.encode()))


class Program:
    def __init__(self, nbytes: int = 1) -> None:
        self.nbytes = nbytes

    def raw_matcher(self) -> Any:
        raise NotImplementedError

    def matcher(self, jump_forward: bool = True, close_at: int | None = None) -> Any:
        return jump_forward, close_at


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
        return Program(int(node.text[5:]) if node.text.startswith("bytes") else 1)


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
    with pytest.raises(ConstraintRefused, match=r"/[$]ref"):
        compiler.check(ConstraintSpec.json_schema({"$ref": "https://example.com/other.json"}))
    compiler.close()


def test_a_spec_is_read_once_by_check_and_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counting(spec: ConstraintSpec, *args: Any, **options: Any) -> Any:
        read.append(spec.value)
        return lower(spec, *args, **options)

    monkeypatch.setattr("sglite.constrained.readings.lower", counting)
    compiler = ConstraintCompiler(VOCAB, engine=Engine())
    compiler.check(spec("a"))
    compiler.compile(spec("a"))
    assert read == ['["a"]']
    for _ in range(2):
        for ask in (compiler.check, compiler.compile):
            with pytest.raises(ConstraintError, match=r"missing [)]"):
                ask(ConstraintSpec.regex("(a"))
    assert read == ['["a"]', "(a"], "a refusal is the same the next time"
    compiler.close()


def test_what_ran_out_of_time_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([OutOfTime("late"), OutOfTime("late"), None])

    def sometimes(spec: ConstraintSpec, *args: Any, **options: Any) -> Any:
        error = next(times)
        if error is not None:
            raise error
        return lower(spec, *args, **options)

    monkeypatch.setattr("sglite.constrained.readings.lower", sometimes)
    compiler = ConstraintCompiler(VOCAB, engine=Engine())
    for _ in range(2):
        with pytest.raises(ConstraintRefused, match="late"):
            compiler.compile(spec("a"))
    assert compiler.compile(spec("a"))
    compiler.close()


def test_readings_are_bounded_in_characters_and_in_number() -> None:
    readings = Readings(Limits(max_bytes=10**7), {})
    for i in range(100):
        readings.read(spec(f"{i}"), Budget())
    assert len(readings._known) == 64
    for i in range(5):
        readings.read(spec("x" * 999_990 + str(i)), Budget())
    assert readings._characters <= 4_000_000 and len(readings._known) == 4


def test_the_engine_runs_at_low_priority_and_the_front_end_does_not() -> None:
    if not hasattr(os, "getpriority"):
        pytest.skip("no thread priorities here")
    seen: list[int] = []

    class Nice(Engine):
        def compile(self, grammar: Grammar) -> Program:
            seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return super().compile(grammar)

    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    compiler = ConstraintCompiler(VOCAB, engine=Nice())
    compiler.compile(spec("a"))
    assert seen == [NICENESS] and os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine
    with pytest.raises(ZeroDivisionError):
        run_idle(lambda: 1 / 0)
    compiler.close()


def test_the_cache_is_bounded_in_bytes() -> None:
    engine = Engine()
    compiler = ConstraintCompiler(VOCAB, engine=engine, cache_bytes=100)
    for text in ("bytes40", "bytes50", "bytes40", "bytes30", "bytes40", "bytes50"):
        compiler.compile(spec(text))
    assert engine.compiled == ["bytes40", "bytes50", "bytes30", "bytes50"]
    compiler.compile(spec("bytes400"))
    compiler.compile(spec("bytes400"))
    assert engine.compiled[-1] == "bytes400" and engine.compiled.count("bytes400") == 1, "one result is always kept"
    compiler.close()


def test_wishes_reach_the_engine_s_matcher() -> None:
    compiler = ConstraintCompiler(VOCAB, engine=Engine())
    assert compiler.compile(spec("a")).matcher(jump_forward=False, close_at=7) == (False, 7)
    compiler.close()


def test_engines_by_name() -> None:
    for name in ("reference", "xgrammar", "auto"):
        compiler = ConstraintCompiler(VOCAB, engine=name)
        matcher = compiler.compile(spec("ab")).matcher()
        assert matcher.accept_run(list(b"ab")) == 2 and matcher.finished
        compiler.close()
    with pytest.raises(ValueError, match="the constraint engine 'magic' is not one of auto, native"):
        ConstraintCompiler(VOCAB, engine="magic")


def test_the_fewest_tokens_of_a_text() -> None:
    compiler = ConstraintCompiler(VOCAB, engine="reference")
    assert compiler.compile(ConstraintSpec.regex("abc|ab?c{3,}")).shortest_tokens() == 3
    compiler.close()


@pytest.mark.parametrize(
    ("constraint", "feature"),
    [
        (ConstraintSpec.regex("(?=.*a)(?=.*b).*"), "several conditions"),
        (ConstraintSpec.regex("(?!ab)[a-z]*"), "several conditions"),
        (ConstraintSpec.json_schema({"type": "object", "properties": {"a": {}}}), "differ from each other"),
    ],
)
def test_xgrammar_names_what_it_cannot_enforce(constraint: ConstraintSpec, feature: str) -> None:
    compiler = ConstraintCompiler(VOCAB, engine="xgrammar")
    with pytest.raises(ConstraintRefused, match=f"the xgrammar engine cannot enforce .*{feature}"):
        compiler.compile(constraint)
    with pytest.raises(ConstraintRefused, match="the xgrammar engine cannot end a text within a budget"):
        compiler.compile(spec("a")).matcher(close_at=5)
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
    named = Vocabulary([b"a", None, None, b"b"], (1,), lambda text: [0], size=33, special_ids={"<t>": 2, "</s>": 1})
    assert dict(named.special_ids) == {"<t>": 2}, "an end of sequence cannot stand inside a text"
    assert named.fingerprint != Vocabulary([b"a", None, None, b"b"], (1,), lambda text: [0], size=33).fingerprint
    for bad in ({"size": 3}, {"eos_ids": []}, {"eos_ids": [4]}, {"eos_ids": [-1]}, {"special_ids": {"": 2}}):
        arguments: dict[str, Any] = {"eos_ids": [1], **bad}
        with pytest.raises(ValueError):
            Vocabulary([b"a", None, b"", b"b"], encode=lambda text: [], **arguments)
