"""Makes a wheel that carries the native libraries, for people without a C++ compiler: ``make wheel``.

    python -m tools.native_wheel [FOLDER]

The libraries are built for any processor of the architecture (each kernel for several instruction sets, of which the
processor's is taken when it runs) and bring the C++ library with them. They need nothing but the C library, of the
version that the wheel's tag names: the lowest that has all they use, which depends on the system that builds. Plain C
interfaces, so one wheel serves every Python. An ordinary build of the package gives a wheel of sources, which are
compiled at first use.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sglite.compiled import STATIC
from sglite.constrained.engines import native_build as constrained
from sglite.runtime.backend import native_build as kernels

ROOT = Path(__file__).parents[1]
_NEEDED = {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2"}
"""Libraries that every Linux with glibc has."""
_OLDEST = (2, 17)
"""The oldest glibc that there is a tag for."""


def copy_sources(folder: Path) -> Path:
    """What a distribution is made of, without anything that lies about in a working tree: ``folder``."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "sglite", folder / "sglite", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def native_wheel(folder: Path) -> Path:
    """The wheel, made in ``folder``. ValueError where this machine cannot make it."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise ValueError(f"native wheels are for x86-64 Linux, not {platform.machine()} {platform.system()}")
    with tempfile.TemporaryDirectory() as scratch:
        sources = copy_sources(Path(scratch) / "sources")
        glibc = _OLDEST
        for module in (kernels, constrained):
            library = module.build(Path(scratch) / "built", link=STATIC)
            glibc = max(glibc, needed_glibc(library))
            shutil.copy(library, sources / module.PREBUILT.relative_to(ROOT))
        tag = f"manylinux_{glibc[0]}_{glibc[1]}_{platform.machine()}"
        return build_wheel(sources, folder, f"--config-settings=--build-option=--plat-name={tag}")


def build_wheel(sources: Path, folder: Path, *options: str) -> Path:
    """The wheel of ``sources``, made in ``folder`` with the setuptools that is installed here."""
    made = folder / "new"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--no-build-isolation", "--wheel-dir", made, *options, sources], check=True)
    (wheel,) = made.iterdir()
    wheel = wheel.replace(folder / wheel.name)
    made.rmdir()
    return wheel


def needed_glibc(library: Path) -> tuple[int, ...]:
    """The lowest version of glibc that ``library`` runs with. ValueError if it needs more than that."""
    said = subprocess.run(
        ["readelf", "--wide", "--dynamic", "--version-info", library], check=True, capture_output=True
    )
    text = said.stdout.decode()
    if others := set(re.findall(r"\(NEEDED\).*\[(.+)\]", text)) - _NEEDED:
        raise ValueError(f"{library.name} needs {', '.join(sorted(others))}, which not every system has")
    return max(tuple(map(int, version.split("."))) for version in re.findall(r"Name: GLIBC_([\d.]+)", text))


if __name__ == "__main__":
    print(native_wheel(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"))
