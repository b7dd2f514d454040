"""``sglite doctor``: what it finds, and that a check that breaks is one that fails."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

import sglite
import sglite.cli_doctor as module
from sglite.cli import main


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, dict[str, str]]]:
    code = main(["doctor", "--json", *argv])
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] == (code == 0)
    return code, {check["name"]: check for check in found["checks"]}


def test_a_machine_that_can_serve_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = told(capsys, "--port", "0")
    assert code == 0, checks
    assert "Qwen3ForCausalLM" in checks["model"]["said"] and checks["torch"]["level"] == "ok"
    assert {"python", "processor", "memory", "packages", "compiler", "constraints", "extras", "port"} <= set(checks)
    assert main(["doctor", "--port", "0"]) == 0
    assert all(line.startswith(("ok ", "warn")) for line in capsys.readouterr().out.splitlines())


def test_a_port_in_use_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, checks = told(capsys, "--port", str(taken.getsockname()[1]))
    assert code == 0 and checks["port"]["level"] == "warn"


def test_what_serving_needs_and_is_not_there_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    for model, said in (("/no/such", "is no folder"), (str(tmp_path), "cannot be read as a model")):
        code, checks = told(capsys, "--port", "0", model)
        assert code == 1 and checks["model"]["level"] == "fail" and said in checks["model"]["said"]


def test_a_check_that_breaks_fails_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> module.Found:
        raise OSError("gone")

    monkeypatch.setattr(module, "_memory", broken)
    monkeypatch.setattr(module, "RUNTIME", ("torch", "no-such-package"))
    code, checks = told(capsys, "--port", "0")
    assert code == 1 and checks["memory"] == {**checks["memory"], "level": "fail", "said": "OSError: gone"}
    assert checks["packages"]["said"] == "missing: no-such-package" and "pip install" in checks["packages"]["advice"]
    assert checks["model"]["level"] == "ok"


def test_a_folder_is_read_to_its_tensors(tmp_path: Path) -> None:
    bundled = Path(sglite.__file__).parent / "bundled" / "sglite-demo"
    for file in bundled.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert module._model(str(tmp_path)).level == "ok"
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 16)
    assert "is no safetensors file" in module._model(str(tmp_path)).said
    (tmp_path / "model.safetensors").unlink()
    assert "has no weights" in module._model(str(tmp_path)).said
