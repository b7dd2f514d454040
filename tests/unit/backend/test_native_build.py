"""Which backend is made, and what is said where there are no native kernels."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglite.runtime.backend import native_build, native_library
from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cpu_native import NativeBackend, cpu_backend


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is built yet, and nothing can be."""
    native_build.load.cache_clear()
    monkeypatch.setattr(native_build, "PREBUILT", tmp_path / "none.so")
    monkeypatch.setenv("SGLITE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    yield
    native_build.load.cache_clear()


def test_without_a_compiler_plain_torch_computes_and_the_log_says_why(
    no_compiler: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="sglite"):
        backend = cpu_backend()
    assert type(backend) is CPUBackend and "plain torch" in backend.describe()
    assert "several times slower: native kernels need a C++ compiler" in caplog.text


def test_kernels_that_are_asked_for_by_name_are_not_replaced(no_compiler: None) -> None:
    with pytest.raises(BackendError, match="cpu_kernels='avx2': native kernels need a C\\+\\+ compiler"):
        cpu_backend(kernels="avx2")
    assert type(cpu_backend(kernels="torch")) is CPUBackend


def test_a_compiler_that_fails_is_quoted(no_compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'x.cpp:1: error: no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(native_build.NativeUnavailable, match=r"do not compile with .*cc: x.cpp:1: error: no such"):
        native_build.load()


def test_an_instruction_set_that_the_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglite.runtime.backend.cpu_native.supported", lambda: ["avx2"])
    with pytest.raises(BackendError, match="cpu_kernels='avx512' is not for this processor; use auto, torch, avx2"):
        cpu_backend(kernels="avx512")
    monkeypatch.setattr("sglite.runtime.backend.cpu_native.supported", list)
    assert type(cpu_backend()) is CPUBackend


def test_the_fastest_is_taken() -> None:
    try:
        backend = cpu_backend(2)
    except BackendError as error:
        pytest.skip(str(error))
    if not isinstance(backend, NativeBackend):
        pytest.skip("there are no native kernels here")
    assert backend.describe().startswith(f"{backend.level} kernels, 2 threads")
    assert backend.level == native_library.supported()[-1]


@pytest.mark.skipif(shutil.which("objdump") is None, reason="there is no objdump")
def test_wide_registers_are_used_by_the_kernels_alone() -> None:
    """What is not a kernel runs on any x86-64. A kernel's functions have internal linkage: of others the linker would
    keep one copy for all instruction sets."""
    try:
        library = native_build.load()._name
    except native_build.NativeUnavailable as error:
        pytest.skip(str(error))
    command = ["objdump", "--disassemble", "--no-show-raw-insn", library]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    wide, function = set(), ""
    for line in said.splitlines():
        if line.endswith(">:"):
            function = line.partition("<")[2].removesuffix(">:")
        elif re.search(r"\tv[a-z]|%[yz]mm|%tmm", line):
            wide.add(function)
    assert wide and [name for name in wide if not name.startswith("_ZN12_GLOBAL__N_1")] == []
