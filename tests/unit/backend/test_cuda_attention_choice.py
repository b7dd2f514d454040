"""Who attends on a GPU: what is asked for, refused by name where it cannot be; or what a clock says is quicker."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cuda_batches import Row, layout_of
from cuda_device import DEVICE
from flashinfer_standin import Log, stand_in

from sglite.runtime.backend import cuda, flashinfer, timing
from sglite.runtime.backend.attention_choice import Part, compare
from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.cuda import CUDABackend
from sglite.runtime.backend.cuda_plan import own
from sglite.runtime.backend.select import backend_for
from sglite.runtime.backend.timing import elapsed_on
from sglite.runtime.backend.workload import Workload
from sglite.runtime.protocol import GroupSpec

pytestmark = pytest.mark.skipif(
    DEVICE.type != "cpu", reason="a graph captures no plain torch that looks at its numbers"
)
GROUP: dict[str, Any] = {"name": "a", "num_kv_heads": 2, "head_dim": 64, "v_head_dim": 64, "dtype": "bfloat16"}
MODEL: dict[str, Any] = {
    "num_heads": 2,
    "dtype": torch.bfloat16,
    "page_size": 16,
    "rows": 2,
    "tokens": 3,
    "context": 40,
}
DECODING, PROMPT, TREE = (
    layout_of([Row(50), Row(7)], 16),
    layout_of([Row(50, 4), Row(3)], 16),
    layout_of([Row(9, 3, [-1, -1])], 16),
)
SHARED = layout_of([Row(8200 + i, shared=512) for i in range(3)], 16)


def workload(*groups: GroupSpec, **changes: Any) -> Workload:
    return Workload(groups=groups or (GroupSpec(**GROUP),), **{**MODEL, **changes})


def group(**changes: Any) -> GroupSpec:
    return GroupSpec(**{**GROUP, **changes})


@pytest.fixture
def log() -> Iterator[Log]:
    with stand_in() as found:
        yield found


def clocks(monkeypatch: pytest.MonkeyPatch, log: Log, seconds: dict[tuple[bool, str], float]) -> None:
    """A clock that knows from what is called of FlashInfer whose run it is; by that and its kind of step, seconds."""

    def timed(run: Callable[[], None]) -> float:
        before, planned = len(log.runs), len(log.plans)
        run()
        assert len(log.plans) == planned, "a plan is timed"
        theirs = len(log.runs) > before
        timed.turns.append(theirs)
        return seconds[theirs, "prompts" if timed.turns.count(theirs) > timing.ROUNDS else "decoding"]

    timed.turns = []  # type: ignore[attr-defined]
    monkeypatch.setattr(cuda, "elapsed_on", lambda device: timed)


def attends(backend: CUDABackend) -> list[bool]:
    """Whether FlashInfer attends a decoding step, a prompt, a step of shared pages, a graph's step."""
    metas = [own(backend.plan(layout)) for layout in (DECODING, PROMPT, SHARED)]
    pool = backend.allocate_pool([group()], num_pages=4, page_size=16)
    batch = backend.fixed_batch(2, pool, 4)
    assert batch is not None
    return [meta.other is not None for meta in (*metas, own(batch.metas[0]))]


@pytest.mark.parametrize("decoding", [0.5, 2.0])
@pytest.mark.parametrize("prompts", [0.5, 2.0])
def test_the_quicker_one_attends(monkeypatch: pytest.MonkeyPatch, log: Log, decoding: float, prompts: float) -> None:
    """Separately for both kinds of steps; what is shared, and draft trees, stay with sglite's kernels."""
    clocks(
        monkeypatch,
        log,
        {
            (False, "decoding"): 1e-3,
            (True, "decoding"): decoding * 1e-3,
            (False, "prompts"): 4e-3,
            (True, "prompts"): prompts * 4e-3,
        },
    )
    backend = CUDABackend("auto")
    assert attends(backend) == [False] * 4
    backend.settle(workload(group(num_layers=3)))
    assert attends(backend) == [decoding < 1, prompts < 1, False, decoding < 1]
    assert own(backend.plan(TREE)).other is None
    said = backend.describe()
    for kind, factor, ours in (("decoding", decoding, 3.0), ("prompts", prompts, 12.0)):
        theirs = factor * ours
        best = f"flashinfer ({theirs:.2f} ms a step, triton {ours:.2f})"
        assert f"{kind} {best if factor < 1 else f'triton ({ours:.2f} ms a step, flashinfer {theirs:.2f})'}" in said


def test_every_group_of_layers_counts_by_its_number(log: Log) -> None:
    """The least of several rounds each, in turns, after runs that are not timed."""
    ran: list[str] = []
    clock = {"a": iter([9.0, 1.0, 3.0, 5.0, 7.0]), "b": iter([4.0] * 5), "c": iter([2.0] * 5), "d": iter([3.0] * 5)}

    def part(layers: int, name: str) -> Part:
        return Part(layers, lambda: ran.append(name))

    def timed(run: Callable[[], None]) -> float:
        run()
        return next(clock[ran[-1]])

    triton, flashinfer = [part(3, "a"), part(10, "b")], [part(3, "c"), part(10, "d")]
    verdict = compare({"decoding": triton}, {"decoding": flashinfer}, timed)["decoding"]
    assert (verdict.triton, verdict.flashinfer) == (3 * 1.0 + 10 * 4.0, 3 * 2.0 + 10 * 3.0)
    assert verdict.winner == "flashinfer"
    assert ran == ["a"] * 3 + ["c"] * 3 + ["a", "c"] * 5 + ["b"] * 3 + ["d"] * 3 + ["b", "d"] * 5


def test_the_clock_of_a_device_tells_time() -> None:
    assert 0 < elapsed_on(DEVICE)(lambda: None) < 1


def test_what_is_asked_for_attends_everything(log: Log) -> None:
    backend = backend_for("cuda", attention="flashinfer")
    assert isinstance(backend, CUDABackend)
    backend.settle(workload(group(), group(name="b", window=20)))
    assert {(kind, plan["window"], plan["graph"]) for kind, plan in log.plans} == {
        ("decode", -1, True), ("decode", 19, True), ("ragged", -1, False), ("ragged", 19, False),
    }  # fmt: skip
    assert attends(backend) == [True] * 4 and "flashinfer 0.6.13" in backend.describe()
    with pytest.raises(BackendError, match="'flashinfer': draft trees that branch are not served; send chains"):
        backend.plan(TREE)
    pool = backend.allocate_pool([group()], num_pages=9, page_size=16)
    batch = backend.fixed_batch(4, pool, 600)
    assert batch is not None and len(batch.metas) == 1 and batch.fill(SHARED) == 0
    with pytest.raises(BackendError, match="sinks: flashinfer has none"):
        backend.attention(torch.zeros(2, 2, 64), pool, 0, backend.plan(DECODING), scale=1.0, sinks=torch.zeros(2))


def test_triton_is_not_measured(log: Log) -> None:
    backend = CUDABackend("triton")
    backend.settle(workload())
    assert log.made == [] and attends(backend) == [False] * 4 and "attention: triton" in backend.describe()


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "float32": ({}, {"dtype": torch.float32}, "computes in bfloat16, the model in float32 .dtype='bfloat16' casts it."),
    "sinks": ({}, {"sinks": True}, "softmax has sinks"),
    "int8": ({"dtype": "int8"}, {}, "KV cache is in int8, the model in bfloat16 .kv_cache_dtype='auto'"),
    "cache": ({"dtype": "float32"}, {}, "KV cache is in float32, the model in bfloat16"),
    "heads": (
        {"head_dim": 80, "v_head_dim": 80},
        {},
        "heads have 80 numbers of keys and 80 of values; it takes 64, 128, 256",
    ),
    "values": ({"v_head_dim": 128}, {}, "heads have 64 numbers of keys and 128 of values"),
    "latents": ({"layout": "mla"}, {}, "cache group 'a' keeps latents"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_do_is_refused_by_name(log: Log, case: str) -> None:
    """Where the choice is left open sglite's kernels do it, and the reason is said."""
    changes, model, message = REFUSED[case]
    asked = workload(group(name="first"), group(**changes), **model)
    with pytest.raises(
        BackendError, match=f"attention_backend='flashinfer': .*{message}.*; use triton, or leave it out"
    ):
        CUDABackend("flashinfer").settle(asked)
    open_ = CUDABackend("auto")
    open_.settle(asked)
    assert attends(open_) == [False] * 4 and "attention: triton; not flashinfer, since" in open_.describe()
    assert log.made == []


def test_recurrent_layers_do_not_matter(log: Log) -> None:
    backend = CUDABackend("flashinfer")
    backend.settle(workload(group(), GroupSpec(name="s", kind="state", layout="recurrent")))
    assert attends(backend)[1]


def test_determinism_is_refused(log: Log) -> None:
    with pytest.raises(BackendError, match=r"its sums depend on the batch \(enable_deterministic_inference=True\)"):
        backend_for("cuda", attention="flashinfer", deterministic=True)
    backend = CUDABackend("auto", deterministic=True)
    backend.settle(workload())
    assert log.made == [] and "since its sums depend on the batch" in backend.describe()


@pytest.mark.parametrize("version", ["0.6.12", "0.8.0", "0.5.3.post1", "0.0.0+unknown"])
def test_versions_that_are_not_known_are_refused(version: str) -> None:
    with (
        stand_in(version),
        pytest.raises(
            BackendError, match=f"version {version.replace('+', '.')} is installed.*from 0.6.13 to before 0.8"
        ),
    ):
        CUDABackend("flashinfer")
    with stand_in("0.7.2.post1"):
        CUDABackend("flashinfer").settle(workload())


def test_the_package_is_not_called_for_the_interpreter(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    monkeypatch.setattr(flashinfer, "DEVICES", ("cuda",))
    with pytest.raises(BackendError, match="'flashinfer': it runs on a GPU, not in Triton's interpreter; use triton"):
        backend_for("cuda", attention="flashinfer")
    backend = CUDABackend("auto")
    backend.settle(workload())
    assert log.made == [] and "not in Triton's interpreter" in backend.describe()


def test_what_is_not_installed_is_missed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashinfer, "DEVICES", ("cpu",))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "flashinfer" else found(name))
    with pytest.raises(
        BackendError, match=r"'flashinfer': it is not installed: pip install 'sglite\[cuda\]'; use triton"
    ):
        backend_for("cuda", attention="flashinfer")
    backend = CUDABackend("auto")
    backend.settle(workload())
    assert attends(backend) == [False] * 4 and "since it is not installed" in backend.describe()


def test_a_package_that_cannot_be_imported_is_told_of(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    def fails(name: str) -> None:
        raise ImportError(f"{name} needs libcudart.so.13\nwhich is not there")

    monkeypatch.setattr(importlib, "import_module", fails)
    message = "it cannot be imported: ImportError: flashinfer needs libcudart.so.13"
    with pytest.raises(BackendError, match=f"'flashinfer': {message}; use triton"):
        CUDABackend("flashinfer")
    backend = CUDABackend("auto")
    backend.settle(workload())
    assert attends(backend) == [False] * 4 and f"since {message};" in backend.describe()


def test_kernels_that_do_not_start_are_told_of(monkeypatch: pytest.MonkeyPatch, log: Log, caplog: Any) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("ninja: not found\nand a hundred lines")

    monkeypatch.setattr("flashinfer_standin._Wrapper._make", fails)
    with pytest.raises(
        BackendError, match="'flashinfer': it did not start: RuntimeError: ninja: not found; use triton"
    ):
        CUDABackend("flashinfer").settle(workload())
    backend = CUDABackend("auto")
    with caplog.at_level("WARNING", "sglite"):
        backend.settle(workload())
    assert "ninja: not found" in caplog.text and attends(backend) == [False] * 4
