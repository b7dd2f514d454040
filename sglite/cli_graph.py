"""``sglite graph prog.py[:program]`` shows a program's graph without running it; ``sglite run`` runs it.

The file is imported, under a name of its own and not as ``__main__``: what it does at import happens, what stands under
``if __name__ == "__main__"`` does not. ``graph`` runs nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglite.cli_parser import Parser

if TYPE_CHECKING:
    from sglite.lang.graph import ProgramGraph

_FORMATS = ("text", "mermaid", "svg", "html")
_BY_SUFFIX = {".html": "html", ".svg": "svg", ".mmd": "mermaid", ".mermaid": "mermaid"}


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds ``graph`` and ``run`` to a command line; each sets ``run`` to what carries it out."""
    graph = commands.add_parser("graph", help="show a program's graph without running it", allow_abbrev=False)
    _add_program(graph)
    graph.add_argument("--format", choices=_FORMATS, help="default: by the suffix of -o, else text")
    graph.add_argument("-o", "--output", metavar="FILE", help="where to write it; default: standard output")
    graph.add_argument("--explain", action="store_true", help="also say what it will cost and share, as an estimate")
    graph.set_defaults(run=show)
    run = commands.add_parser("run", help="run a program and print what it returns, or its text", allow_abbrev=False)
    _add_program(run)
    where = run.add_mutually_exclusive_group()
    where.add_argument("--model", metavar="PATH", help="model for an engine in this process; default: the bundled one")
    where.add_argument("--url", help="a running sglite or SGLang server")
    run.add_argument("--trace", metavar="FILE", help="write the run's graph with its records, as JSON lines")
    run.add_argument("--explain", action="store_true", help="say on standard error what it cost and shared")
    run.set_defaults(run=execute)


def graph(argv: Sequence[str]) -> int:
    """The command ``sglite graph``."""
    return _carried_out("graph", argv)


def run(argv: Sequence[str]) -> int:
    """The command ``sglite run``."""
    return _carried_out("run", argv)


def _carried_out(name: str, argv: Sequence[str]) -> int:
    parser = Parser(prog="sglite")
    add_commands(parser.add_subparsers(parser_class=Parser))
    given = parser.read([name, *argv])
    return int(given.run(given))


def _add_program(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", metavar="FILE[:PROGRAM]", help="a Python file, and which of its programs")
    parser.add_argument(
        "--arg",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an argument of the program (JSON, or else text); may be given several times",
    )


def show(given: argparse.Namespace) -> int:
    """``sglite graph``. ValueError for what the user got wrong."""
    arguments = read_arguments(given.arg)
    with loaded(given.program) as program:
        try:
            graph = program.compile(**arguments)
        except TypeError as error:
            raise ValueError(str(error)) from error
    suffix = Path(given.output).suffix.lower() if given.output else ""
    text = _rendered(graph, given.format or _BY_SUFFIX.get(suffix, "text"))
    if given.output:
        _write(given.output, text)
    else:
        print(text)
    if given.explain:
        print(graph.explain(), file=sys.stderr)
    return 0


def execute(given: argparse.Namespace) -> int:
    """``sglite run``; 1 when the program fails. ValueError for what the user got wrong."""
    arguments = read_arguments(given.arg)
    with loaded(given.program) as program, _backend(given.model, given.url) as backend:
        try:
            state = program.run(backend=backend, **arguments)
        except Exception:
            traceback.print_exc()
            return 1
        error = state.error()
        if given.trace:
            _write(given.trace, state.graph().to_jsonl())
        if error is None:
            print(_shown(state.ret_value) if state.ret_value is not None else state.text())
        if given.explain:
            print(state.graph().explain(backend=backend), file=sys.stderr)
    if error is not None:
        print(f"sglite run: {error}", file=sys.stderr)
        return 1
    return 0


def read_arguments(given: Sequence[str]) -> dict[str, Any]:
    """``name=value`` pairs; a value is JSON if it can be read so, else text. ValueError for what is no pair."""
    arguments: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--arg {pair!r}: write it as name=value")
        try:
            arguments[name] = json.loads(value)
        except (ValueError, RecursionError):
            arguments[name] = value
    return arguments


@contextmanager
def loaded(spec: str) -> Iterator[Any]:
    """The program that ``FILE[:NAME]`` names, for as long as its module is loaded. ValueError if there is none, or
    several and no name."""
    file, name = _split(spec)
    path = Path(file).resolve()
    if not path.is_file():
        raise ValueError(f"{file}: no such file; give a Python file that defines a program")
    module_name = f"sglite_program_{path.stem}"
    description = importlib.util.spec_from_file_location(module_name, path)
    if description is None or description.loader is None:
        raise ValueError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(description)
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.parent))
    try:
        try:
            description.loader.exec_module(module)
        except Exception as error:
            raise ValueError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
        yield _chosen(vars(module), module_name, file, name)
    finally:
        sys.modules.pop(module_name, None)
        if str(path.parent) in sys.path:
            sys.path.remove(str(path.parent))


def _split(spec: str) -> tuple[str, str]:
    """File and name; a drive letter's colon is part of the file."""
    file, colon, name = spec.rpartition(":")
    return (file, name) if colon and name.isidentifier() and len(file) > 1 else (spec, "")


def _chosen(names: dict[str, Any], module: str, file: str, wanted: str) -> Any:
    programs = {
        name: value
        for name, value in names.items()
        if callable(getattr(value, "func", None)) and callable(getattr(value, "compile", None))
    }
    if wanted:
        if wanted not in programs:
            known = f"it has {', '.join(programs)}" if programs else "it has none; decorate one with @sgl.function"
            raise ValueError(f"{file} has no program {wanted!r}; {known}")
        return programs[wanted]
    own = {name: value for name, value in programs.items() if getattr(value.func, "__module__", "") == module}
    found = list((own or programs).items())
    if not found:
        raise ValueError(f"{file} defines no program; decorate one with @sgl.function")
    if len({id(value) for _, value in found}) > 1:
        raise ValueError(f"{file} has several programs; say which: {', '.join(f'{file}:{name}' for name, _ in found)}")
    return found[0][1]


@contextmanager
def _backend(model: str | None, url: str | None) -> Iterator[Any]:
    if url is not None:
        from sglite.lang.backends.endpoint import RuntimeEndpoint

        yield RuntimeEndpoint(url)
        return
    try:
        from sglite.runtime.engine.engine import Engine
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sglite"):
            raise
        raise ValueError(f"the package {error.name!r} is not installed; pip install 'sglite[runtime]'") from None
    with Engine() if model is None else Engine(model) as engine:
        yield engine


def _rendered(graph: ProgramGraph, form: str) -> str:
    if form == "mermaid":
        return graph.to_mermaid()
    if form == "svg":
        return graph.to_svg()
    return graph.to_html() if form == "html" else str(graph)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, indent=2)
    except (TypeError, ValueError):
        return repr(value)


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error
