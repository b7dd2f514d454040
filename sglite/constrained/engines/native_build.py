"""The shared library of the native engine: found, or built once with the C++ compiler and kept.

A wheel may carry the library beside the sources (`csrc/libsglite_constrained.so`). Otherwise it is compiled at first
use into the user's cache folder, under a name that says what it was made from: other sources, another compiler, another
library. `SGLITE_CACHE` names another folder, `CXX` another compiler. Built for any processor of the architecture.
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
from functools import lru_cache, partial
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "csrc"
PREBUILT = SOURCES / "libsglite_constrained.so"
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-pthread")
_BUILD_SECONDS = 600

logger = logging.getLogger(__name__)


class NativeUnavailable(RuntimeError):
    """There is no native library and none can be built. One line, with what to install."""


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The library. Raises NativeUnavailable."""
    path = PREBUILT if PREBUILT.exists() else build(cache_folder())
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(f"the native constraint engine cannot be loaded: {error}") from None


def loaded() -> ctypes.CDLL | None:
    """The library if it was loaded before."""
    return load() if load.cache_info().currsize else None


def cache_folder() -> Path:
    """Where built libraries are kept."""
    named = os.environ.get("SGLITE_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sglite"


def build(folder: Path) -> Path:
    """The library in `folder`, compiled unless it is there. Several processes may do this at once."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise NativeUnavailable(
            "the native constraint engine needs a C++ compiler at first use: install g++ or clang++"
        )
    sources = sorted(SOURCES.glob("*.cpp"))
    if not sources:
        raise NativeUnavailable("the native constraint engine's sources are not installed; reinstall sglite")
    target = folder / f"constrained-{_fingerprint(compiler)}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            logger.warning("building the native constraint engine with %s, once; it takes up to a minute", compiler)
            made = Path(scratch) / target.name
            objects = [made.with_name(f"{source.stem}.o") for source in sources]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(partial(_compile, compiler), sources, objects))
            _run([compiler, *FLAGS, "-shared", *map(str, objects), "-o", str(made)])
            os.replace(made, target)
    except OSError as error:
        raise NativeUnavailable(
            f"the native constraint engine cannot be built in {folder}: {error}; set SGLITE_CACHE to a writable folder"
        ) from None
    return target


def _compile(compiler: str, source: Path, target: Path) -> None:
    _run([compiler, *FLAGS, "-c", str(source), "-o", str(target)])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NativeUnavailable(f"compiling the native constraint engine took over {_BUILD_SECONDS} s") from None
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise NativeUnavailable(f"the native constraint engine does not compile with {command[0]}: {first}")


def _fingerprint(compiler: str) -> str:
    digest = hashlib.sha256("\0".join((compiler, *FLAGS, platform.machine(), platform.system())).encode())
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.hpp")]):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]
