"""The house plan as a test: who may import whom (``docs/design.md``), no circle among modules, and a light front door.

Imports are read from the source, not from a run. Those inside functions count too, but where the plan names a door
that is opened when used, it says so here. Imports under ``if TYPE_CHECKING`` are for readers and type checkers only.
"""

from __future__ import annotations

import ast
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import sglite

ROOT = Path(sglite.__file__).parent
SPECIFICATION = ("cpu_sample", "draws", "order")
"""Of the backend, what sampling knows: what a draw is and how it comes out."""
HEAVY = ("torch", "transformers", "safetensors", "xgrammar", "triton")


@dataclass(frozen=True)
class Import:
    """One import: of ``target`` in ``module``."""

    module: str
    target: str
    line: int
    lazy: bool
    """Inside a function: happens when that is called."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


class Reader(ast.NodeVisitor):
    """Collects the imports of one module."""

    def __init__(self, module: str, is_package: bool) -> None:
        self.module = module
        self.package = module if is_package else module.rpartition(".")[0]
        self.found: list[Import] = []
        self.depth = 0

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.dump(node.test):
            self.generic_visit(node)
            return
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parts = self.package.split(".")
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
        for alias in node.names:
            whole = f"{base}.{alias.name}"
            self.add(whole if whole in MODULES else base, node.lineno)

    def add(self, target: str, line: int) -> None:
        self.found.append(Import(self.module, target, line, self.depth > 0))


def imports_of(module: str) -> list[Import]:
    path = MODULES[module]
    reader = Reader(module, path.name == "__init__.py")
    reader.visit(ast.parse(path.read_text(encoding="utf-8")))
    return reader.found


IMPORTS = [item for module in MODULES for item in imports_of(module)]


def inside(name: str, *rooms: str) -> bool:
    """Whether a module is one of ``rooms`` or lies in one."""
    return any(name == room or name.startswith(room + ".") for room in rooms)


def offences(room: str, allowed: tuple[str, ...], *, heavy: bool = True) -> list[str]:
    """Imports of ours that ``room`` makes beyond itself and ``allowed``; of torch and the like too unless ``heavy``."""
    found = []
    for item in IMPORTS:
        if not inside(item.module, room):
            continue
        ours = inside(item.target, "sglite") and not inside(item.target, room, *allowed)
        if ours or (not heavy and inside(item.target, *HEAVY)):
            found.append(f"{item.module}:{item.line} imports {item.target}")
    return found


def test_the_reader_reads_the_tree() -> None:
    assert len(MODULES) > 100 and len(IMPORTS) > 500
    assert any(i.module == "sglite.runtime.engine.core" and i.target == "sglite.runtime.cache.radix" for i in IMPORTS)
    assert any(i.lazy and i.target == "sglite.runtime.executor.build" for i in IMPORTS)


def test_the_language_knows_nothing_of_ours_but_the_request_side_of_constraints() -> None:
    """Not even lazily: an engine is handed to it, and known by what it can do."""
    assert offences("sglite.lang", ("sglite.constrained.spec",), heavy=False) == []


def test_constraints_know_nothing_of_the_runtime() -> None:
    assert offences("sglite.constrained", ("sglite.compiled",)) == []
    assert not any(inside(i.target, "torch", "transformers") for i in IMPORTS if inside(i.module, "sglite.constrained"))


def test_the_request_side_of_constraints_needs_the_standard_library_only() -> None:
    targets = {item.target.partition(".")[0] for item in imports_of("sglite.constrained.spec")}
    assert targets <= set(sys.stdlib_module_names)


def test_the_cache_is_plain_integers() -> None:
    room = "sglite.runtime.cache"
    rest = [o for o in offences(room, ("sglite.runtime.protocol",), heavy=False) if not o.startswith(f"{room}.pool:")]
    assert rest == []


def test_the_engine_sees_neither_torch_nor_model_nor_backend() -> None:
    """``executor.build`` and the hub, which know models, are opened by ``Engine`` when one is made."""
    door = "sglite.runtime.engine.engine"
    banned = (
        "sglite.runtime.model",
        "sglite.runtime.backend",
        "sglite.runtime.executor.worker",
        "sglite.runtime.executor.rows",
        "sglite.lang",
    )
    found = [
        f"{i.module}:{i.line} imports {i.target}"
        for i in IMPORTS
        if inside(i.module, "sglite.runtime.engine")
        and (inside(i.target, *banned, *HEAVY) or i.target == "sglite.runtime.cache.pool")
        and not (i.lazy and i.module == door)
    ]
    assert found == []


def test_what_the_engine_imports_at_once_brings_no_torch() -> None:
    """The arrows, followed to their end, from the step loop."""
    reached, todo = set(), ["sglite.runtime.engine.core"]
    while todo:
        module = todo.pop()
        for item in imports_of(module):
            if item.lazy or item.target in reached:
                continue
            assert not inside(item.target, *HEAVY), f"{module}:{item.line} imports {item.target}"
            reached.add(item.target)
            if item.target in MODULES:
                todo.append(item.target)
    assert "sglite.runtime.cache.radix" in reached


def test_models_see_the_protocol_of_the_backend_only() -> None:
    allowed = (
        "sglite.runtime.backend.base",
        "sglite.runtime.backend.experts",
        "sglite.runtime.backend.weights",
        "sglite.runtime.protocol",
        "sglite.runtime.config",
        "sglite.runtime.gguf",
        "sglite.runtime.quant",
    )
    assert offences("sglite.runtime.model", allowed) == []


def test_quantisation_knows_tensors_and_nothing_of_models_or_devices() -> None:
    allowed = tuple(f"sglite.runtime.model.{name}" for name in ("checkpoint", "errors", "fields", "names"))
    assert offences("sglite.runtime.quant", allowed) == []


def test_reading_gguf_files_takes_the_standard_library_only() -> None:
    """Both sides of a server read them, of which one knows no torch and the other no tokenizers."""
    assert {item.target.partition(".")[0] for item in imports_of("sglite.runtime.gguf")} <= set(sys.stdlib_module_names)


def test_the_backend_sees_nothing_above_it() -> None:
    """``protocol`` is the language both speak; the pool is made of the tensors it allocates, weights of codes."""
    allowed = ("sglite.runtime.protocol", "sglite.runtime.cache.pool", "sglite.runtime.quant.codes", "sglite.compiled")
    assert offences("sglite.runtime.backend", allowed) == []


def test_compiling_takes_the_standard_library_only() -> None:
    """Two rooms that know nothing of each other do it."""
    targets = {item.target.partition(".")[0] for item in imports_of("sglite.compiled")}
    assert targets <= set(sys.stdlib_module_names)


def test_text_sampling_and_drafts_know_no_engine() -> None:
    assert offences("sglite.runtime.spec", (), heavy=False) == []
    assert offences("sglite.runtime.text", ("sglite.runtime.gguf",)) == []
    draws = tuple(f"sglite.runtime.backend.{name}" for name in SPECIFICATION)
    assert offences("sglite.runtime.sample", ("sglite.runtime.protocol", "sglite.constrained.spec", *draws)) == []


def test_only_the_worker_and_who_builds_it_meet_model_and_backend() -> None:
    meeting = {
        i.module
        for i in IMPORTS
        if inside(i.target, "sglite.runtime.model", "sglite.runtime.backend")
        and not inside(i.module, "sglite.runtime.model", "sglite.runtime.quant", "sglite.runtime.backend")
    }
    parts = ("worker", "stages", "choice", "rows", "build", "graphs", "profile")
    executors = {f"sglite.runtime.executor.{part}" for part in parts}
    specified = {f"sglite.runtime.backend.{name}" for name in SPECIFICATION}
    meeting -= {i.module for i in IMPORTS if inside(i.module, "sglite.runtime.sample") and i.target in specified}
    assert meeting <= executors | {"sglite.runtime.engine.engine", "sglite.runtime.cache.pool"}


@pytest.mark.parametrize("lazy", [False, True], ids=["at import", "imports inside functions too"])
def test_no_module_imports_itself_by_any_way(lazy: bool) -> None:
    """Tarjan's strongly connected components over modules (SIAM J. Comput. 1(2), 1972): all of size one."""
    edges: dict[str, set[str]] = {module: set() for module in MODULES}
    for item in IMPORTS:
        public_names = item.module == "sglite"  # bound when first used, by name
        if item.target in MODULES and item.target != item.module and not public_names and (lazy or not item.lazy):
            edges[item.module].add(item.target)
    circles = [sorted(part) for part in components(edges) if len(part) > 1]
    assert circles == []


def components(edges: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that reach each other."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in edges[node]:
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            cut = stack.index(node)
            found.append(set(stack[cut:]))
            del stack[cut:]

    for node in edges:
        if node not in index:
            visit(node)
    return found


def test_components_finds_a_circle() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}
    assert sorted(map(sorted, components(edges))) == [["a", "b", "c"], ["d"]]


def fresh(code: str) -> str:
    """Run code in a new interpreter; what it prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT.parent).stdout


def test_importing_the_package_is_light() -> None:
    """Neither torch nor an HTTP client nor anything else of weight; far below half a second on a quiet machine."""
    code = (
        "import json, sys, time; start = time.perf_counter(); import sglite; seconds = time.perf_counter() - start;"
        "print(json.dumps([seconds, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    runs = [json.loads(fresh(code)) for _ in range(5)]
    loaded = set(runs[0][1])
    assert not loaded & {"torch", "transformers", "httpx", "pydantic", "numpy", "msgspec", "xgrammar", "tokenizers"}
    assert statistics.median(seconds for seconds, _ in runs) < 0.5


def test_using_the_language_brings_no_torch() -> None:
    code = "import sys, sglite; sglite.function; sglite.gen; sglite.testing; print('torch' in sys.modules)"
    assert fresh(code).strip() == "False"


def test_every_public_name_is_there() -> None:
    code = "import sglite; print([n for n in sglite.__all__ if getattr(sglite, n, None) is None])"
    assert fresh(code).strip() == "[]"
