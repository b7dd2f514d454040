"""Distributions: a wheel with the native libraries works where there is no compiler, plain ones carry their sources."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.native_wheel import build_wheel, copy_sources, native_wheel, needed_glibc

LIBRARIES = {"sglite/runtime/backend/csrc/libsglite_kernels.so", "sglite/constrained/csrc/libsglite_constrained.so"}
SOURCES = {
    "sglite/runtime/backend/csrc/api.cpp",
    "sglite/runtime/backend/csrc/kernels.hpp",
    "sglite/constrained/csrc/api.cpp",
    "sglite/constrained/csrc/ir.hpp",
}
USE = """
import sys, torch, sglite
assert sglite.__file__.startswith(sys.prefix), sglite.__file__

from sglite.runtime.backend.weights import Matrix
from sglite.runtime.backend.cpu_native import cpu_backend
backend = cpu_backend(2)
x, weight = torch.randn(5, 64), torch.randn(48, 64)
packed = Matrix(weight.clone())
backend.pack(packed)
assert torch.allclose(backend.matmul(x, packed), x @ weight.T, atol=1e-4)

from sglite.constrained.engines.base import load
from sglite.constrained.grammar import Grammar, Text
from sglite.constrained.vocab import Vocabulary
vocabulary = Vocabulary([b"a", b"b", b""], [2], lambda text: [])
text = load("native", vocabulary).compile(Grammar({"root": Text("ab")})).raw_matcher().shortest()
print(packed.packed, text, torch.backends.cpu.get_cpu_capability())
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The native wheel."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    yield native_wheel(tmp_path_factory.mktemp("native"))


def names(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


def test_the_libraries_are_in_it_and_its_name_says_where_it_runs(made: Path, tmp_path: Path) -> None:
    assert names(made) >= LIBRARIES | SOURCES
    (oldest,) = re.findall(r"-py3-none-manylinux_2_(\d+)_x86_64\.whl$", made.name)
    with zipfile.ZipFile(made) as archive:
        needed = [needed_glibc(Path(archive.extract(name, tmp_path))) for name in LIBRARIES]
    assert max(needed) <= (2, int(oldest))


def test_it_works_where_there_is_no_compiler_and_compiles_nothing(made: Path, tmp_path: Path) -> None:
    """In an environment of its own, which borrows the packages that sglite needs."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", made], check=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (tmp_path / "empty").mkdir()
    surroundings = {"HOME": str(tmp_path), "PATH": str(tmp_path / "empty"), "OMP_NUM_THREADS": "1"}
    surroundings |= {"SGLITE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [python, "-c", USE], env=surroundings, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    packed, text, processor = done.stdout.split()
    assert text == "b'ab'" and (packed == "True" or not processor.startswith("AVX"))
    assert not (tmp_path / "cache").exists()


def test_plain_distributions_carry_the_sources_alone(tmp_path: Path) -> None:
    copied = copy_sources(tmp_path / "sources")
    wheel = build_wheel(copied, tmp_path)
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=copied, check=True, stdout=subprocess.DEVNULL)
    (sdist,) = tmp_path.glob("*.tar.gz")
    assert wheel.name.endswith("-py3-none-any.whl")
    for archive in (wheel, sdist):
        assert names(archive) >= SOURCES and not any(name.endswith(".so") for name in names(archive))
