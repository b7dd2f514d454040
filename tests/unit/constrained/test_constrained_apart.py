"""The compile process: the same constraints as without it, and no way to harm who asks."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from constrained_walks import small_vocabulary

from benchmarks.constrained import everyday_openai, everyday_pydantic
from sglite.constrained.apart import messages
from sglite.constrained.apart.client import CompileProcess, Refusal
from sglite.constrained.apart.process import MAX_MEMORY
from sglite.constrained.budget import Budget, OutOfTime
from sglite.constrained.compiler import CompiledConstraint, ConstraintCompiler
from sglite.constrained.engines.reference import ReferenceEngine
from sglite.constrained.json_schema.asked import Asked, Question, checker_of
from sglite.constrained.limits import Limits
from sglite.constrained.spec import CompilerBusy, ConstraintError, ConstraintRefused, ConstraintSpec

VOCAB = small_vocabulary()

FOREVER = ConstraintSpec.json_schema({"patternProperties": {f"^(a|b){{{i}}}": {"const": i} for i in range(60)}})
"""Reading it takes a minute."""
GREEDY = ConstraintSpec.json_schema({"properties": {"x" * 100_000: {"allOf": [{"minimum": i} for i in range(9000)]}}})
"""The pointers of its keywords are a gigabyte of text."""

TOOL = {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}, "required": ["city"]}
TAGS: list[dict[str, Any]] = [
    {"type": "triggered_tags", "triggers": ["<call>"], "tags": [
        {"begin": "<call>", "content": {"type": "json_schema", "json_schema": TOOL}, "end": "</call>"}]},
    {"type": "tag", "begin": "<a>", "end": "</a>", "content": {"type": "json_schema", "style": "qwen_xml",
        "json_schema": {"type": "object", "properties": {"p": {"type": "string", "pattern": "^(?=.*a).{2,6}$"}}}}},
    {"type": "sequence", "elements": [{"type": "regex", "pattern": "[ab]+"}, {"type": "any_text"}]},
    {"type": "token", "token": "<none>"},
]  # fmt: skip
GUARDED: list[Any] = [
    {"type": "array", "contains": {"type": "integer"}, "minContains": 2, "maxContains": 3},
    {"type": "object", "dependentRequired": {f"a{i}": [f"a{i + 1}"] for i in range(40)}},
    {"type": "array", "items": {"enum": ["a", "é\U0001f600", 1.5, [1]]}, "not": {"const": ["a"]}},
    {"$defs": {"n": {"multipleOf": 7919}}, "type": "array", "items": {"$ref": "#/$defs/n"}},
    {"allOf": [{"pattern": f"a.{{{i}}}b"} for i in range(1, 6)], "type": "string"},
    {"type": "object", "unevaluatedProperties": False, "anyOf": [{"properties": {f"a{i}": True}} for i in range(9)]},
    {"type": "string", "format": "date-time", "minLength": 3, "x-unknown": 1},
]
WRONG: list[ConstraintSpec] = [
    ConstraintSpec.json_schema(False),
    ConstraintSpec.json_schema({"$ref": "https://example.com/other.json"}),
    ConstraintSpec.json_schema({"type": "strnig"}),
    ConstraintSpec.json_schema({"properties": {"a": {"pattern": "\\p{Klingon}"}}}),
    ConstraintSpec.json_schema({"enum": ["\ud83d\ude00"]}),
    ConstraintSpec.regex("(a"),
    ConstraintSpec.regex("((a{1,100}){1,100}){1,100}"),
    ConstraintSpec.regex("a" * 300_000),
    ConstraintSpec.ebnf("root ::= x"),
    ConstraintSpec.ebnf("root ::= root 'a' | 'b'"),
    ConstraintSpec("choice", "[]"),
    ConstraintSpec("choice", '["\\ud800"]'),
    ConstraintSpec("structural_tag", "{}"),
]
RIGHT: list[ConstraintSpec] = [
    *(ConstraintSpec.json_schema(case.schema) for case in [*everyday_pydantic.cases(), *everyday_openai.cases()]),
    *(ConstraintSpec.json_schema(schema, strict=False, order="any") for schema in GUARDED),
    *(ConstraintSpec.json_schema(schema, whitespace="flexible") for schema in GUARDED),
    *(ConstraintSpec.structural_tag({"type": "structural_tag", "format": tag}) for tag in TAGS),
    ConstraintSpec.regex(r"(?=.*a)\p{Lu}[^b]{1,30}\d+"),
    ConstraintSpec.ebnf('root ::= "(" root ")" | [a-z]+'),
    ConstraintSpec.choice(["yes", "no", "vielleicht", "\U0001f600"]),
]


@pytest.fixture(scope="module")
def here() -> Iterator[ConstraintCompiler]:
    compiler = ConstraintCompiler(VOCAB, deadline_s=60, cache_entries=1000)
    compiler.compile(ConstraintSpec.regex("a"))  # from now on there is the library to ask, as there is in a process
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def apart() -> Iterator[ConstraintCompiler]:
    compiler = ConstraintCompiler(VOCAB, deadline_s=60, cache_entries=1000, apart=True)
    yield compiler
    compiler.close()


def outcome(compiler: ConstraintCompiler, spec: ConstraintSpec) -> CompiledConstraint | tuple[Any, ...]:
    try:
        return compiler.compile(spec)
    except (ConstraintError, ConstraintRefused) as error:
        more = (error.reason, error.pointer, error.keyword) if isinstance(error, ConstraintRefused) else ()
        return type(error), str(error), *more


def same_walks(one: CompiledConstraint, other: CompiledConstraint, rng: random.Random) -> int:
    """Both say the same along random texts; how many tokens were looked at."""
    looked = 0
    for _ in range(3):
        first, second = one.matcher(), other.matcher()
        masks = np.zeros((2, VOCAB.words), dtype=np.int32)
        for _ in range(24):
            first.fill(masks[0])
            second.fill(masks[1])
            assert (masks[0] == masks[1]).all()
            assert (first.accepting, first.held, first.forced(8)) == (second.accepting, second.held, second.forced(8))
            allowed = np.flatnonzero(np.unpackbits(masks[0].view(np.uint8), bitorder="little"))
            if not len(allowed) or first.finished:
                break
            token = int(rng.choice(list(allowed)))
            assert first.accept(token) and second.accept(token)
            looked += 1
    return looked


def test_what_is_read_apart_is_the_same(here: ConstraintCompiler, apart: ConstraintCompiler) -> None:
    rng = random.Random(5)
    looked = guarded = refused = 0
    for spec in RIGHT:
        one, other = outcome(here, spec), outcome(apart, spec)
        if isinstance(one, tuple) or isinstance(other, tuple):
            assert one == other, spec
            refused += 1
            continue
        assert dict(one.report.verdicts) == dict(other.report.verdicts)
        assert dict(one.report.reasons) == dict(other.report.reasons)
        guarded += bool(one.program.checks)  # type: ignore[attr-defined]
        looked += same_walks(one, other, rng)
    assert looked > 5000 and guarded >= 5 and refused < 10


@pytest.mark.parametrize("spec", WRONG, ids=lambda spec: spec.kind + spec.value[:20])
def test_what_is_refused_apart_is_refused_in_the_same_words(
    here: ConstraintCompiler, apart: ConstraintCompiler, spec: ConstraintSpec
) -> None:
    found = outcome(here, spec)
    assert isinstance(found, tuple) and found == outcome(apart, spec) == outcome(apart, spec)


def test_questions_cross_with_their_values() -> None:
    document = {"type": ["array", "string"], "not": {"const": [1e300]}, "contains": {"const": 1.5}}
    checker = checker_of(document, Limits())
    questions = [
        Question(places=[""], other=[[1.5, "\ud83d"], [1.5]]),
        Question(places=["/contains"], same=[1.50]),
        Question(opposites=["/not"]),
        Question(places=[""], opposites=["/contains"], same=["a", "a"], bare=True),
    ]
    checks = [Asked(document, question, checker) for question in questions]
    sent = messages.checks_of(messages.checks_to_json(checks), Limits(), Budget())
    asked = 0
    for text in ("[1.5]", "[1.50, 1]", "1.5", "15e-1", "[1e300]", '"a"', "a", "b", '[1.5, "\ud83d\ude00"]', "x", ""):
        told = [check(text) for check in checks]
        assert [check(text) for check in sent] == told, text
        asked += sum(told)
    assert asked == 12


# --- its end ------------------------------------------------------------------------------------------------------


@pytest.fixture
def process() -> Iterator[CompileProcess]:
    process = CompileProcess(Limits(), {}, 0.001)
    yield process
    process.close()


def until(seconds: float) -> float:
    return time.monotonic() + seconds


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z" and pid not in children()
    except OSError:
        return True


def children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def waits_for(condition: Callable[[], Any], seconds: float = 10) -> bool:
    end = until(seconds)
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(condition())


def test_past_its_deadline_it_is_ended_and_the_next_one_is_read(process: CompileProcess) -> None:
    process.read(ConstraintSpec.regex("a"), until(20))
    pid, began = process.pid, time.monotonic()
    assert pid is not None
    with pytest.raises(OutOfTime):
        process.read(FOREVER, time.monotonic() + 0.5)
    assert time.monotonic() - began < 2 and is_gone(pid)
    assert process.read(ConstraintSpec.regex("a"), until(20)) and process.restarts == 1


def test_a_killed_one_is_tried_once_more(process: CompileProcess) -> None:
    process.read(ConstraintSpec.regex("a"), until(20))
    found: list[Any] = []

    def read() -> None:
        try:
            found.append(process.read(FOREVER, until(20)))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    seen: set[int] = set()
    for _ in range(2):
        assert waits_for(lambda: process.pid not in (None, *seen))
        pid = process.pid
        assert pid is not None
        seen.add(pid)
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
    thread.join(20)
    (error,) = found
    assert isinstance(error, ConstraintRefused)
    assert str(error) == "the process that compiles it was killed by SIGKILL, twice; simplify it"
    assert process.read(ConstraintSpec.regex("a"), until(20)) and process.restarts == 2
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    assert process.read(ConstraintSpec.regex("b"), until(20)), "one that died in idleness harms nobody"


def test_its_memory_is_bounded(process: CompileProcess) -> None:
    with pytest.raises(Refusal, match="out of memory while it was compiled; simplify it") as refusal:
        process.read(GREEDY, until(60))
    assert not refusal.value.lasting
    assert process.read(ConstraintSpec.regex("a"), until(20)) and process.restarts == 0
    assert process.pid is not None
    status = Path(f"/proc/{process.pid}/status").read_text()
    size = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert size << 10 < MAX_MEMORY // 8, "one that has grown is replaced"


def test_it_ends_with_its_user_whatever_it_is_doing() -> None:
    program = (
        "import sys, threading, time; from sglite.constrained.apart.client import *;"
        "process = CompileProcess(Limits(), {}, 0.001); process.read(ConstraintSpec.regex('a'), time.monotonic() + 60);"
        f"spec = ConstraintSpec('json_schema', {FOREVER.value!r});"
        "threading.Thread(target=lambda: process.read(spec, time.monotonic() + 60), daemon=True).start();"
        "time.sleep(0.3); print(process.pid, flush=True); time.sleep(60)"
    )
    user = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert user.stdout is not None
    pid = int(user.stdout.readline())
    assert not is_gone(pid)
    user.kill()
    user.wait()
    assert waits_for(lambda: is_gone(pid))


def test_it_starts_without_numpy() -> None:
    program = "import sys, sglite.constrained.apart.process; assert not {'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# --- its compiler -------------------------------------------------------------------------------------------------


def test_there_is_none_until_there_is_something_to_read_and_none_after_close() -> None:
    before = children()
    compiler = ConstraintCompiler(VOCAB, apart=True)
    assert not children() - before
    compiler.compile(ConstraintSpec.regex("a"))
    (pid,) = children() - before
    assert b"apart.process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    compiler.close()
    assert waits_for(lambda: not children() - before and is_gone(pid))


def test_what_is_quick_does_not_wait_for_what_is_slow() -> None:
    compiler = ConstraintCompiler(VOCAB, apart=True, deadline_s=6)
    compiler.compile(ConstraintSpec.regex("a"))
    slow = [compiler.submit(ConstraintSpec("json_schema", FOREVER.value + " " * i)) for i in range(2)]
    time.sleep(0.1)
    for i in range(5):
        assert compiler.compile(ConstraintSpec.regex(f"a{{{i}}}b"))
    assert not any(future.done() for future in slow)
    began = time.monotonic()
    for future in slow:
        with pytest.raises(ConstraintRefused, match=r"compiling took longer than .* s; simplify it"):
            future.result(15)
    assert time.monotonic() - began < 8
    assert waits_for(lambda: compiler.counts()["restarts"] == 2)
    assert compiler.counts()["timeouts"] == 2
    compiler.close()


def test_a_refusal_of_the_front_end_is_remembered(apart: ConstraintCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ConstraintSpec.regex("(ab")
    first = outcome(apart, spec)
    monkeypatch.setattr(CompileProcess, "read", lambda *_: pytest.fail("it was read again"))
    assert outcome(apart, spec) == first
    assert outcome(apart, ConstraintSpec.regex("a" * 300_000))[1].startswith("the regex has 300000 bytes")  # type: ignore[index]


def test_too_many_at_once_are_told() -> None:
    compiler = ConstraintCompiler(VOCAB, apart=True, max_queued=2, deadline_s=2)
    futures = [compiler.submit(ConstraintSpec("json_schema", FOREVER.value + " " * i)) for i in range(12)]
    errors = [future.exception(30) for future in futures]
    busy = [error for error in errors if isinstance(error, CompilerBusy)]
    assert len(busy) >= 5 and "2 constraints wait to be compiled; try again later" in str(busy[0])
    assert all(isinstance(error, ConstraintRefused | CompilerBusy) for error in errors)
    compiler.close()


def test_other_engines_read_where_they_are() -> None:
    before = children()
    compiler = ConstraintCompiler(VOCAB, engine="reference", apart=True)
    assert compiler.compile(ConstraintSpec.regex("ab"))
    assert not children() - before
    compiler.close()


def test_where_there_is_no_native_engine_its_stand_in_reads_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglite.constrained.compiler.load", lambda name, vocab: ReferenceEngine(vocab))
    before, compiler = children(), ConstraintCompiler(VOCAB, apart=True)
    for pattern in ("ab", "cd", "ef"):
        assert compiler.compile(ConstraintSpec.regex(pattern)).shortest_tokens() > 0
    assert not children() - before
    compiler.close()
