"""The shared library of the native kernels: found, or built once with the C++ compiler and kept.

A wheel may carry the library beside the sources (``csrc/libsglite_kernels.so``). Otherwise it is compiled at first use
into the user's cache folder, under a name that says what it was made from. ``SGLITE_CACHE`` names another folder,
``CXX`` another compiler. One library has the kernels of every instruction set; the processor decides when it runs.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "csrc"
PREBUILT = SOURCES / "libsglite_kernels.so"
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wno-psabi", "-pthread")
_WIDE = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512")
VARIANTS = {"avx2": ("-mavx2", "-mfma"), "avx512": _WIDE, "avx512_bf16": (*_WIDE, "-mavx512bf16")}
"""Instruction sets, and what has the compiler use them in ``kernels.cpp``."""
_KERNELS = "kernels.cpp"
_BUILD_SECONDS = 600

logger = logging.getLogger(__name__)


class NativeUnavailable(RuntimeError):
    """There are no native kernels and none can be built. One line, with what to install."""


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The library. Raises NativeUnavailable."""
    if platform.machine() not in ("x86_64", "AMD64") or platform.system() != "Linux":
        raise NativeUnavailable(f"native kernels are for x86-64 Linux, not {platform.machine()} {platform.system()}")
    path = PREBUILT if PREBUILT.exists() else build(cache_folder())
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(f"the native kernels cannot be loaded: {error}") from None


def cache_folder() -> Path:
    """Where built libraries are kept."""
    named = os.environ.get("SGLITE_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sglite"


def build(folder: Path) -> Path:
    """The library in ``folder``, compiled unless it is there. Several processes may do this at once."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise NativeUnavailable("native kernels need a C++ compiler at first use: install g++ or clang++")
    if not (SOURCES / _KERNELS).exists():
        raise NativeUnavailable("the sources of the native kernels are not installed; reinstall sglite")
    target = folder / f"kernels-{_fingerprint(compiler)}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            logger.warning("building the native kernels with %s, once; it takes up to a minute", compiler)
            commands = _commands(compiler, Path(scratch))
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(_run, commands.values()))
            made = Path(scratch) / target.name
            _run([compiler, *FLAGS, "-shared", *map(str, commands), "-o", str(made)])
            os.replace(made, target)
    except OSError as error:
        raise NativeUnavailable(
            f"the native kernels cannot be built in {folder}: {error}; set SGLITE_CACHE to a writable folder"
        ) from None
    return target


def _commands(compiler: str, folder: Path) -> dict[Path, list[str]]:
    """By object file: how it is compiled. The kernels are, once for every instruction set."""
    commands = {}
    for source in sorted(SOURCES.glob("*.cpp")):
        variants = VARIANTS if source.name == _KERNELS else {"": ()}
        for variant, flags in variants.items():
            made = folder / f"{source.stem}{variant}.o"
            table = [f"-DSG_TABLE=sg_{variant}"] if variant else []
            commands[made] = [compiler, *FLAGS, *flags, *table, "-c", str(source), "-o", str(made)]
    return commands


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NativeUnavailable(f"compiling the native kernels took over {_BUILD_SECONDS} s") from None
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise NativeUnavailable(f"the native kernels do not compile with {command[0]}: {first}")


def _fingerprint(compiler: str) -> str:
    said = (compiler, *FLAGS, *(f"{name} {flags}" for name, flags in VARIANTS.items()), platform.machine())
    digest = hashlib.sha256("\0".join(said).encode())
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.hpp")]):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]
