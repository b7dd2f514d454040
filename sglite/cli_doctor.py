"""``sglite doctor``: whether this machine can do what sglite does, and what to do where it cannot.

Each check looks at the thing itself: torch is imported and multiplies, the constraint engine is loaded, the port is
bound. Exit code 1 if one fails that serving needs; a warning is something that works more slowly or not at all, and
that one may not need.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sglite.cli_parser import Parser
from sglite.cli_version import installed
from sglite.version import __version__

RUNTIME = (
    "torch", "numpy", "safetensors", "huggingface_hub", "tokenizers", "jinja2", "pyyaml", "xgrammar", "fastapi",
    "uvicorn",
)  # fmt: skip
"""Packages of the extra ``runtime``."""
EXTRAS = {"openai": ("openai",), "anthropic": ("anthropic",), "litellm": ("litellm",), "mcp": ("mcp",)}
"""Extras that one may not need, and what they bring."""
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")
_LITTLE_MEMORY = 4 << 30
_MAX_HEADER = 100_000_000  # bytes, the format's own bound

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Found:
    """What a check found. ``advice``: what to do, where it is not ok."""

    name: str
    level: Level
    said: str
    advice: str = ""


def doctor(argv: Sequence[str]) -> int:
    """The command."""
    parser = Parser(prog="sglite doctor", description="Check whether this machine can do what sglite does.")
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a model's folder to look at; default: the bundled one"
    )
    parser.add_argument("--port", type=int, default=30000, help="whether it is free (default: 30000)")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    given = parser.read(argv)
    found = examine(given.model, given.port)
    failed = any(one.level == "fail" for one in found)
    if given.json:
        print(json.dumps({"ok": not failed, "version": __version__, "checks": [asdict(one) for one in found]}))
    else:
        width = max(len(one.name) for one in found)
        for one in found:
            print(f"{one.level:<4}  {one.name:<{width}}  {one.said}" + (f"; {one.advice}" if one.advice else ""))
    return 1 if failed else 0


def examine(model: str | None, port: int) -> list[Found]:
    """Every check, in order. A check that breaks is one that fails."""
    checks: list[tuple[str, Callable[[], Found]]] = [
        ("python", _python), ("processor", _processor), ("memory", _memory), ("packages", _packages),
        ("torch", _torch), ("compiler", _compiler), ("constraints", _constraints), ("kernels", _kernels),
        ("extras", _extras), ("port", lambda: _port(port)), ("model", lambda: _model(model)),
    ]  # fmt: skip
    found = []
    for name, check in checks:
        try:
            found.append(check())
        except Exception as error:
            found.append(Found(name, "fail", " ".join(f"{type(error).__name__}: {error}".split()), "see the message"))
    return found


def _python() -> Found:
    return Found("python", "ok", f"{platform.python_version()} ({sys.executable}) on {platform.platform()}")


def _processor() -> Found:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    has = [flag for flag in _CPU_FLAGS if flag in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    said = f"{name}, {cores} cores, {' '.join(has) or 'no wide vectors known'}"
    if platform.machine() in ("x86_64", "AMD64") and flags and "avx2" not in flags:
        return Found("processor", "warn", said, "without AVX2 torch is slow")
    return Found("processor", "ok", said)


def _memory() -> Found:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = total
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except OSError:
        pass
    said = f"{free / 2**30:.1f} GiB of {total / 2**30:.1f} GiB available"
    if free < _LITTLE_MEMORY:
        return Found("memory", "warn", said, "enough for small models only; free some, or give --max-total-tokens")
    return Found("memory", "ok", said)


def _packages() -> Found:
    missing = [name for name in RUNTIME if installed(name) is None]
    if missing:
        return Found("packages", "fail", f"missing: {', '.join(missing)}", "pip install 'sglite[runtime]'")
    return Found("packages", "ok", ", ".join(f"{name} {installed(name)}" for name in RUNTIME[1:]))


def _torch() -> Found:
    try:
        import torch
    except ImportError as error:
        return Found("torch", "fail", f"cannot be imported: {' '.join(str(error).split())}", "reinstall torch")
    product = torch.ones(8, 8) @ torch.ones(8, 8)
    if float(product.sum()) != 512.0:
        return Found("torch", "fail", f"{torch.__version__} multiplies wrongly", "reinstall torch")
    said = f"{torch.__version__}, computes on cpu with {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        used = "" if installed("triton") else ", which sglite does not use without Triton: pip install 'sglite[cuda]'"
        said += f"; sees {torch.cuda.get_device_name(0)}{used}"
    return Found("torch", "ok", said)


def _compiler() -> Found:
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if found is None:
        advice = "install g++ or clang++; without one constraints are carried out by xgrammar"
        return Found("compiler", "warn", "no C++ compiler", advice)
    return Found("compiler", "ok", found)


def _constraints() -> Found:
    from sglite.constrained.engines.native_build import NativeUnavailable, cache_folder, load

    try:
        load()
    except NativeUnavailable as error:
        return Found("constraints", "warn", str(error), "until then constraints are carried out by xgrammar")
    return Found("constraints", "ok", f"the native engine loads (kept in {cache_folder()})")


def _kernels() -> Found:
    from sglite.runtime.executor.build import computes_with

    said, plain = computes_with()
    if plain:
        return Found("kernels", "warn", said, "they need x86-64 Linux, AVX2 and a C++ compiler")
    return Found("kernels", "ok", said)


def _extras() -> Found:
    there = [name for name, packages in EXTRAS.items() if all(installed(package) for package in packages)]
    absent = [name for name in EXTRAS if name not in there]
    said = f"installed: {', '.join(there) or 'none'}" + (f"; not: {', '.join(absent)}" if absent else "")
    return Found("extras", "ok", said)


def _port(port: int) -> Found:
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port}: give 0 to 65535")
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
    except OSError as error:
        return Found("port", "warn", f"{port} on 127.0.0.1: {error.strerror}", "serve with another --port")
    return Found("port", "ok", f"{port} on 127.0.0.1 is free")


def _model(model: str | None) -> Found:
    """The folder can be read: configuration, weights' headers, tokenizer. Whether the model runs is for ``serve``."""
    from importlib import resources

    bundled = str(resources.files("sglite") / "bundled" / "sglite-demo")
    folder = Path(bundled if model is None else model).expanduser()
    advice = "give the folder that holds config.json, *.safetensors and the tokenizer"
    if not folder.is_dir():
        return Found("model", "fail", f"{model} is no folder", advice)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = ", ".join(config["architectures"])
        weights = sorted(folder.glob("*.safetensors"))
        count = sum(_tensors(path) for path in weights)
        _tokenizer(folder)
    except (ValueError, OSError, LookupError, TypeError) as error:
        said = f"{folder} cannot be read as a model: {type(error).__name__}: {error}"
        return Found("model", "fail", " ".join(said.split()), advice)
    if not count:
        return Found("model", "fail", f"{folder} has no weights in *.safetensors", advice)
    size = sum(path.stat().st_size for path in weights)
    said = f"{folder.name}: {names}, {count} tensors, {size / 1e9:.2f} GB, tokenizer reads"
    return Found("model", "ok", said)


def _tensors(path: Path) -> int:
    """How many tensors a file says it holds (safetensors: eight bytes of length, then JSON)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= _MAX_HEADER:
            raise ValueError(f"{path.name} is no safetensors file")
        return len(json.loads(file.read(length)).keys() - {"__metadata__"})


def _tokenizer(folder: Path) -> None:
    from sglite.runtime.text.tokenizer import load_tokenizer

    load_tokenizer(folder)
