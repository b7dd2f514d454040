"""The benchmark of a GPU's decoding where there is none: what it computes by itself, and all of it on a tiny shape."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytest.importorskip("tokenizers")

from benchmarks import gpu_decode
from benchmarks.gpu_decode import SHAPES, floor_bytes, idle_shares
from sglite import Engine
from sglite.runtime.backend.kernels.device import INTERPRETED
from sglite.runtime.cache.pool import KVPool


@pytest.mark.parametrize(
    ("shape", "batch", "gigabytes"),
    [
        ("0.6B", 1, 1.31),
        ("0.6B", 64, 8.71),
        ("0.6B", 256, 31.26),
        ("8B", 1, 15.29),
        ("8B", 64, 24.80),
        ("8B", 256, 53.79),
    ],
)
def test_the_floor_is_weights_and_cache(shape: str, batch: int, gigabytes: float) -> None:
    """As added up by hand, of the published shapes."""
    assert floor_bytes(SHAPES[shape], batch, 1024) / 1e9 == pytest.approx(gigabytes, abs=0.006)
    weights, alone = (floor_bytes(SHAPES[shape], n, 1024) for n in (0, 1))
    assert floor_bytes(SHAPES[shape], batch, 1024, 1024) == weights + (alone - weights)
    assert floor_bytes(SHAPES[shape], batch, 1024, 512) - weights == (alone - weights) * (batch + 1) // 2


def test_gaps_are_idle_and_long_ones_wait() -> None:
    """Of spans 100 us apart, of which some overlap; gaps at the ends do not count."""
    spans = [(100.0 * i, 100.0 * i + 98) for i in range(40)]
    idle, waiting = idle_shares([*spans, (900.0, 1090.0), (90_000.0, 90_001.0)])
    assert (idle, waiting) == (pytest.approx((2 * 20 - 2) / 2000, abs=0.003), 0)
    later = [(start + (50 if start >= 2000 else 0), end + (50 if start >= 2000 else 0)) for start, end in spans]
    idle, waiting = idle_shares(later)
    assert waiting == pytest.approx(52 / 2050, abs=0.001) and idle == pytest.approx((52 + 19 * 2) / 2050, abs=0.001)
    assert idle_shares(later[::-1]) == (idle, waiting)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not INTERPRETED, reason="on a GPU it is run itself")
def test_all_of_it_runs_in_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Every row of the table is there, with the rule for shared prefixes, and no engine finds another's cache."""

    def pools() -> set[int]:
        return {id(found) for found in gc.get_objects() if isinstance(found, KVPool)}

    others = pools()

    def engine(*args: Any, **options: Any) -> Engine:
        assert pools() <= others
        return Engine(*args, **options)

    monkeypatch.setattr(gpu_decode, "Engine", engine)
    monkeypatch.setattr(gpu_decode, "FEW", 1)
    monkeypatch.setattr(gpu_decode, "TOOL_CALL", json.dumps({"enum": ["get_weather", "get_time"]}))
    shape = ["--shapes", "tiny", "--context", "34", "--steps", "1", "--rounds", "1", "--attention-backend", "triton"]
    gpu_decode.main([*shape, "--batches", "2", "--out", str(tmp_path / "out.json")])
    said = capsys.readouterr().out
    rows = [line.split(" | ")[2] for line in said.splitlines() if line.startswith("| tiny")]
    asked = ["free", "top-p", "constrained", "tool call", "shared prefix"]
    assert rows == [*asked, "overlap off", "graphs off", "deterministic", "cascade off"]
    assert "once where that saves a step 8192 slots (an estimate)" in said and "by every row (deterministic)" in said
    samples = json.loads((tmp_path / "out.json").read_text())
    assert [sample["what"] for sample in samples] == rows
    by_name = {sample["what"]: sample for sample in samples}
    assert by_name["cascade off"]["against_ms"] == by_name["shared prefix"]["step_ms"]
    assert by_name["overlap off"]["against_ms"] == by_name["free"]["step_ms"]
    assert by_name["shared prefix"]["floor_ms"] < by_name["free"]["floor_ms"]
