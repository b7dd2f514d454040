"""Libraries compiled at first use: made once, again after a change, and none taken that others could have made."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sglite import compiled
from sglite.compiled import NativeUnavailable, Sources, build

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "number.hpp").write_text("#define NUMBER 42\n")
    (folder / "api.cpp").write_text('#include "number.hpp"\nextern "C" int number() { return NUMBER; }\n')
    return Sources(what="test library", plural=False, name="test", folder=folder, flags=("-fPIC",))


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of its own, which is not there yet; no other compiler, no sanitizers."""
    for name in ("CXX", "SGLITE_SANITIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SGLITE_CACHE", str(tmp_path / "cache"))
    return compiled.cache_folder()


def number(library: Path) -> int:
    return int(ctypes.CDLL(str(library)).number())


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_once_and_again_when_what_it_is_made_of_changes(sources: Sources, surroundings: Path) -> None:
    made = build(sources, surroundings)
    when = made.stat().st_mtime_ns
    assert number(made) == 42 and build(sources, surroundings) == made and made.stat().st_mtime_ns == when
    (sources.folder / "number.hpp").write_text("#define NUMBER 43\n")
    changed = build(sources, surroundings)
    assert changed != made and number(changed) == 43
    others = {build(replace(sources, flags=("-fPIC", "-O1")), surroundings)}
    others.add(build(replace(sources, variants={"api.cpp": {"a": ("-DX",)}}), surroundings))
    others.add(build(sources, surroundings, compiled.STATIC))
    assert len(others) == 3 and changed not in others


def test_a_source_is_compiled_once_for_each_variant(sources: Sources, surroundings: Path) -> None:
    (sources.folder / "kernel.cpp").write_text('extern "C" int NAME() { return VALUE; }\n')
    variants = {"kernel.cpp": {"one": ("-DNAME=one", "-DVALUE=1"), "two": ("-DNAME=two", "-DVALUE=2")}}
    library = ctypes.CDLL(str(build(replace(sources, variants=variants), surroundings)))
    assert (library.number(), library.one(), library.two()) == (42, 1, 2)


def test_what_is_beside_the_sources_is_taken_first(sources: Sources, surroundings: Path, tmp_path: Path) -> None:
    prebuilt = tmp_path / "prebuilt.so"
    shutil.copy(build(sources, surroundings), prebuilt)
    (sources.folder / "number.hpp").write_text("#define NUMBER 44\n")
    assert compiled.load(sources, prebuilt).number() == 42
    assert compiled.load(sources, tmp_path / "none.so").number() == 44
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    with pytest.raises(NativeUnavailable, match=r"^the test library cannot be loaded: .*broken\.so"):
        compiled.load(sources, broken)


def test_what_is_made_is_this_users_alone_whatever_the_umask(sources: Sources, surroundings: Path) -> None:
    before = os.umask(0)
    try:
        made = build(sources, surroundings)
    finally:
        os.umask(before)
    assert permissions(surroundings) == 0o700 and permissions(made) == 0o755
    assert [path.name for path in surroundings.iterdir()] == [made.name]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(sources: Sources, surroundings: Path, mode: int) -> None:
    made = build(sources, surroundings)
    surroundings.chmod(mode)
    with pytest.raises(NativeUnavailable, match=f"cannot be built in {surroundings}: others may .* this user's alone"):
        build(sources, surroundings)
    surroundings.chmod(0o755)
    assert build(sources, surroundings) == made


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_library_that_others_may_write_to_is_made_again(sources: Sources, surroundings: Path, mode: int) -> None:
    made = build(sources, surroundings)
    made.write_bytes(b"somebody else's")
    made.chmod(mode)
    assert number(build(sources, surroundings)) == 42 and permissions(made) == 0o755


def test_a_link_in_place_of_the_library_is_replaced(sources: Sources, surroundings: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.so"
    made = build(sources, surroundings)
    made.rename(elsewhere)
    made.symlink_to(elsewhere)
    assert build(sources, surroundings) == made and not made.is_symlink() and number(made) == 42


def test_what_belongs_to_another_user_is_not_taken(
    sources: Sources, surroundings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(sources, surroundings)
    found = made.stat()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(NativeUnavailable, match="others may write to it"):
        build(sources, surroundings)
    monkeypatch.undo()
    assert made.stat() == found


def test_several_processes_may_build_at_once(sources: Sources, surroundings: Path) -> None:
    code = (
        "import ctypes, sys; from pathlib import Path; from sglite.compiled import Sources, build;"
        "found = build(Sources(what='', plural=False, name='test', folder=Path(sys.argv[1]), flags=('-fPIC',)),"
        " Path(sys.argv[2])); print(found, ctypes.CDLL(str(found)).number())"
    )
    command = [sys.executable, "-c", code, str(sources.folder), str(surroundings)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate(timeout=100)[0] for process in running}
    made = build(sources, surroundings)
    assert said == {f"{made} 42\n"} and list(surroundings.iterdir()) == [made]


def test_what_goes_wrong_is_said_in_one_line(
    sources: Sources, surroundings: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (sources.folder / "api.cpp").write_text("#error no such thing\n")
    with pytest.raises(NativeUnavailable, match=r"^the test library does not compile with .*g\+\+: .*no such thing$"):
        build(sources, surroundings)
    (tmp_path / "file").write_text("")
    with pytest.raises(NativeUnavailable, match=r"cannot be built in .*file: .*; set SGLITE_CACHE to a writable"):
        build(sources, tmp_path / "file")
    with pytest.raises(NativeUnavailable, match="the sources of the test library are not installed"):
        build(replace(sources, folder=tmp_path / "none"), surroundings)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NativeUnavailable, match=r"^the test library needs a C\+\+ compiler at first use: install g"):
        build(sources, surroundings)


def test_sanitizers_make_another_library_and_unknown_ones_are_refused(
    sources: Sources, surroundings: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = build(sources, surroundings)
    monkeypatch.setenv("SGLITE_SANITIZE", "undefined")
    sanitized = build(sources, surroundings)
    shutil.copy(plain, prebuilt := tmp_path / "prebuilt.so")
    assert Path(compiled.load(sources, prebuilt)._name) == sanitized, "the one beside the sources has none"
    assert sanitized != plain and b"__ubsan" not in plain.read_bytes()
    (sources.folder / "api.cpp").write_text('extern "C" int number(int x) { return 1 << x; }\n')
    assert b"__ubsan" in build(sources, surroundings).read_bytes()
    monkeypatch.setenv("SGLITE_SANITIZE", "address,memory")
    with pytest.raises(NativeUnavailable, match="SGLITE_SANITIZE='address,memory': give some of address, undefined"):
        build(sources, surroundings)
