"""C++ sources of this package as a shared library: found beside them, or compiled once and kept.

A wheel may carry the library beside its sources. Otherwise it is compiled at first use into the user's cache folder,
under a name that says what it was made from: other sources, other flags or another compiler give another library.
``SGLITE_CACHE`` names another folder, ``CXX`` another compiler. A library is code that runs as this user, so none is
taken that somebody else may have put there: the folder is made for this user alone, one that others may write to is
refused, and a library in it that is not this user's, or that others may write to, is made again.

``SGLITE_SANITIZE`` (``address``, ``undefined`` or ``thread``, with commas between) compiles with gcc's sanitizers, for
tests; the process must have their runtime loaded first (``LD_PRELOAD``), see ``make test-kernels-sanitized``.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

SANITIZERS = ("address", "undefined", "thread")
STATIC = ("-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections")
"""For the linker, where a library is to be loaded elsewhere: it brings what it needs of C++, and shows none of it."""
_BUILD_SECONDS = 600

logger = logging.getLogger(__name__)


class NativeUnavailable(RuntimeError):
    """There is no library and none can be built. One line, with what to install or to change."""


@dataclass(frozen=True)
class Sources:
    """What a library is made of: every ``*.cpp`` in ``folder``."""

    what: str
    """In messages, after "the"."""
    plural: bool
    name: str
    """What its file's name begins with."""
    folder: Path
    flags: tuple[str, ...]
    variants: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """Of a source that is compiled several times: by the name of each time, its flags."""

    def files(self) -> list[Path]:
        """What is compiled."""
        return sorted(self.folder.glob("*.cpp"))

    def verb(self, one: str, many: str) -> str:
        """The form that agrees with ``what``."""
        return many if self.plural else one


def load(sources: Sources, prebuilt: Path) -> ctypes.CDLL:
    """The library: ``prebuilt`` if that is there. Raises NativeUnavailable."""
    path = prebuilt if prebuilt.exists() and not _sanitized() else build(sources, cache_folder())
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(f"the {sources.what} cannot be loaded: {error}") from None


def cache_folder() -> Path:
    """Where built libraries are kept."""
    named = os.environ.get("SGLITE_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sglite"


def build(sources: Sources, folder: Path, link: Sequence[str] = ()) -> Path:
    """The library in ``folder``, compiled unless it is there. Several processes may do this at once.

    ``link``: more flags for the linker. Raises NativeUnavailable.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        need = sources.verb("the {} needs", "{} need").format(sources.what)
        raise NativeUnavailable(f"{need} a C++ compiler at first use: install g++ or clang++")
    if not sources.files():
        raise NativeUnavailable(f"the sources of the {sources.what} are not installed; reinstall sglite")
    flags = (*sources.flags, *_sanitized())
    target = folder / f"{sources.name}-{_fingerprint(sources, [compiler, *flags, *link])}.so"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _own(folder.stat()):
            raise OSError("others may write to it")
        if not _own_file(target):
            _make(sources, [compiler, *flags], link, target)
    except OSError as error:
        raise NativeUnavailable(
            f"the {sources.what} cannot be built in {folder}: {error}; set SGLITE_CACHE to a writable folder that is "
            "this user's alone"
        ) from None
    return target


def _make(sources: Sources, compile_: Sequence[str], link: Sequence[str], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        logger.warning("building the %s with %s, once; it takes up to a minute", sources.what, compile_[0])
        commands = _commands(sources, compile_, Path(scratch))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda command: _run(sources, command), commands.values()))
        made = Path(scratch) / target.name
        _run(sources, [*compile_, "-shared", *map(str, commands), "-o", str(made), *link])
        made.chmod(0o755)  # whatever the umask
        os.replace(made, target)


def _commands(sources: Sources, compile_: Sequence[str], folder: Path) -> dict[Path, list[str]]:
    """By object file: how it is compiled."""
    commands = {}
    for source in sources.files():
        for variant, flags in sources.variants.get(source.name, {"": ()}).items():
            made = folder / f"{source.stem}{variant}.o"
            commands[made] = [*compile_, *flags, "-c", str(source), "-o", str(made)]
    return commands


def _run(sources: Sources, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NativeUnavailable(f"compiling the {sources.what} took over {_BUILD_SECONDS} s") from None
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        does = sources.verb("does", "do")
        raise NativeUnavailable(f"the {sources.what} {does} not compile with {command[0]}: {first}")


def _sanitized() -> tuple[str, ...]:
    """Flags for what ``SGLITE_SANITIZE`` asks for."""
    named = os.environ.get("SGLITE_SANITIZE")
    if not named:
        return ()
    if not set(named.split(",")) <= set(SANITIZERS):
        raise NativeUnavailable(f"SGLITE_SANITIZE={named!r}: give some of {', '.join(SANITIZERS)}, commas between")
    # Optimised fully, the checks of some kernels take the compiler many minutes.
    return (f"-fsanitize={named}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1", "-O1")


def _own_file(path: Path) -> bool:
    """Whether there is a plain file that nobody else can have written."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and _own(found)


def _own(found: os.stat_result) -> bool:
    """Whether nobody else may write to it, so far as the system has users."""
    return os.name != "posix" or (found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _fingerprint(sources: Sources, command: Sequence[str]) -> str:
    variants = (f"{name} {variant} {flags}" for name, of in sources.variants.items() for variant, flags in of.items())
    digest = hashlib.sha256("\0".join((*command, *variants, platform.machine(), platform.system())).encode())
    for path in sorted([*sources.files(), *sources.folder.glob("*.hpp")]):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]
