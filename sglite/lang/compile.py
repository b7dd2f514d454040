"""Previews: the graph of a program as far as it is known before a run, without running the program.

The body is read, not executed: a small interpreter of its syntax carries out what concerns the state (appends, forks,
turns) and what is pure (arithmetic, text, loops over known things), follows calls into functions of the program, and
leaves everything else alone. What such a call would return is a ``Computed`` symbol; where the way on depends on a
symbol, a ``Dynamic`` node says so and the preview ends there. So nothing of the user's that could have an effect runs:
no call into other libraries, no change of an object that was there before, no import, no print.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from sglite.lang.compile_calls import Caller
from sglite.lang.compile_values import Closure, Scope, Stop, is_symbol, names_state, shown
from sglite.lang.errors import SymbolicValueError
from sglite.lang.ir import Arg, Computed, Dynamic, Graph
from sglite.lang.trace import TraceState
from sglite.lang.writer import ForkGroup

_MAX_STEPS = 200_000
"""Statements that a preview reads, loops counted each time."""


class Returned(Exception):
    """A ``return``."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class Broke(Exception):
    """A ``break``."""


class Continued(Exception):
    """A ``continue``."""


def compile_program(function: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> Graph:
    """The graph of ``function`` for ``arguments``; those not given are symbols unless they have a default.

    Raises TypeError for arguments it does not have and ValueError when its source cannot be read.
    """
    graph = Graph(name)
    state = TraceState(graph, graph.new_stream())
    closure = closure_of(function)
    signature = inspect.signature(function)
    try:
        given = signature.bind_partial(None, **arguments)
    except TypeError as error:
        raise TypeError(f"{name}.compile: {error}; the signature is {signature}") from None
    given.apply_defaults()
    values = dict(given.arguments)
    for index, (key, parameter) in enumerate(signature.parameters.items()):
        if index == 0:
            values[key] = state
        elif key not in values and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            values[key] = Arg(key)
    interpreter = Interpreter(graph)
    try:
        interpreter.body(closure, values)
    except Stop as stop:
        graph.reading = stop.line
        state += Dynamic(stop.why)
    except SymbolicValueError as error:
        state += Dynamic(str(error).partition(";")[0])
    finally:
        graph.reading = ""
    return graph


def closure_of(function: Callable[..., Any]) -> Closure:
    """A function with its syntax; ValueError where its source cannot be read."""
    plain = inspect.unwrap(function)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(plain)))
    except (OSError, TypeError, SyntaxError) as error:
        name = getattr(function, "__name__", "the function")
        raise ValueError(
            f"compile: the source of {name!r} cannot be read ({error}); put it in a file, or use trace()"
        ) from error
    node = next((n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))), None)
    if node is None or not isinstance(plain, FunctionType):
        raise ValueError(f"compile: {function!r} is no plain Python function; use trace()")
    free = inspect.getclosurevars(plain).nonlocals
    scope = Scope({}, Scope(dict(free), None, own=False), plain.__globals__)
    return Closure(node, scope, getattr(plain, "__name__", "<lambda>"), plain)


class Interpreter(Caller):
    """Statements; expressions are the ``Evaluator``'s, calls the ``Caller``'s."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self._steps = 0
        self._file = ""
        self._first = 1

    # --- calls of functions whose syntax is known ---

    def body(self, closure: Closure, values: dict[str, Any]) -> Any:
        """What a call returns, its parameters being ``values``."""
        scope = Scope(values, closure.scope, closure.scope.globals)
        if isinstance(closure.node, ast.Lambda):
            return self.value(closure.node.body, scope)
        outside = self._file, self._first, self.graph.reading
        if closure.function is not None:
            code = closure.function.__code__
            self._file, self._first = code.co_filename.rpartition("/")[2], code.co_firstlineno
        try:
            self.block(closure.node.body, scope)
        except Returned as returned:
            return returned.value
        finally:
            self._file, self._first, self.graph.reading = outside
        return None

    def function(self, function: Callable[..., Any]) -> Closure | None:
        """A user's function as something to read; None where that cannot be done."""
        try:
            return closure_of(function)
        except ValueError:
            return None

    # --- statements ---

    def block(self, statements: list[ast.stmt], scope: Scope) -> None:
        """Statements in order."""
        for statement in statements:
            self._steps += 1
            if self._steps > _MAX_STEPS:
                raise Stop(f"more than {_MAX_STEPS} steps")
            handler = getattr(self, f"_{type(statement).__name__.lower()}", None)
            if handler is None:
                raise Stop(shown(statement))
            if self._file:
                self.graph.reading = f"{self._file}:{self._first + statement.lineno - 1}"
            try:
                handler(statement, scope)
            except Stop as stop:
                stop.line = stop.line or self.graph.reading
                raise

    def _expr(self, node: ast.Expr, scope: Scope) -> None:
        self.value(node.value, scope)

    def _pass(self, node: ast.Pass, scope: Scope) -> None:
        """Nothing."""

    _global = _nonlocal = _assert = _delete = _pass

    def _return(self, node: ast.Return, scope: Scope) -> None:
        raise Returned(None if node.value is None else self.value(node.value, scope))

    def _break(self, node: ast.Break, scope: Scope) -> None:
        raise Broke

    def _continue(self, node: ast.Continue, scope: Scope) -> None:
        raise Continued

    def _raise(self, node: ast.Raise, scope: Scope) -> None:
        raise Stop(shown(node))

    def _assign(self, node: ast.Assign, scope: Scope) -> None:
        value = self.value(node.value, scope)
        for target in node.targets:
            self.assign(target, value, scope)

    def _annassign(self, node: ast.AnnAssign, scope: Scope) -> None:
        if node.value is not None:
            self.assign(node.target, self.value(node.value, scope), scope)

    def _augassign(self, node: ast.AugAssign, scope: Scope) -> None:
        before = self.value(_loaded(node.target), scope)
        value = self.value(node.value, scope)
        if isinstance(before, (TraceState, ForkGroup)) and isinstance(node.op, ast.Add):
            before += value
            return
        self.assign(node.target, self.operate(node.op, before, value, node), scope)

    def _functiondef(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> None:
        scope.set(node.name, Closure(node, scope, node.name, None))

    _asyncfunctiondef = _functiondef

    def _classdef(self, node: ast.ClassDef, scope: Scope) -> None:
        scope.set(node.name, Computed(f"class {node.name}"))

    def _import(self, node: ast.Import, scope: Scope) -> None:
        for alias in node.names:
            scope.set(alias.asname or alias.name.partition(".")[0], self.imported(alias.name, bool(alias.asname)))

    def _importfrom(self, node: ast.ImportFrom, scope: Scope) -> None:
        module = self.imported(node.module or "", True)
        for alias in node.names:
            known = not is_symbol(module) and alias.name in vars(module)
            value = vars(module)[alias.name] if known else Computed(f"{node.module}.{alias.name}")
            scope.set(alias.asname or alias.name, value)

    def _if(self, node: ast.If, scope: Scope) -> None:
        test = self.value(node.test, scope)
        if not is_symbol(test):
            self.block(node.body if test else node.orelse, scope)
        elif names_state([*node.body, *node.orelse], scope) or _leaves([*node.body, *node.orelse]):
            raise Stop(f"if {shown(node.test)}")
        else:
            self._unknown_after([node], scope, f"if {shown(node.test)}")

    def _while(self, node: ast.While, scope: Scope) -> None:
        while True:
            test = self.value(node.test, scope)
            if is_symbol(test):
                raise Stop(f"while {shown(node.test)}")
            if not test:
                self.block(node.orelse, scope)
                return
            self._steps += 1
            if self._steps > _MAX_STEPS:
                raise Stop(f"while {shown(node.test)}")
            try:
                self.block(node.body, scope)
            except Continued:
                continue
            except Broke:
                return

    def _for(self, node: ast.For | ast.AsyncFor, scope: Scope) -> None:
        items = self.items(self.value(node.iter, scope))
        what = f"for {shown(node.target)} in {shown(node.iter)}"
        if items is None:
            if names_state(node.body, scope) or _leaves(node.body):
                raise Stop(what)
            self._unknown_after([node], scope, what)
            return
        for item in items:
            self.assign(node.target, item, scope)
            try:
                self.block(node.body, scope)
            except Continued:
                continue
            except Broke:
                return
        self.block(node.orelse, scope)

    _asyncfor = _for

    def _with(self, node: ast.With | ast.AsyncWith, scope: Scope, index: int = 0) -> None:
        if index == len(node.items):
            self.block(node.body, scope)
            return
        item = node.items[index]
        manager = self.value(item.context_expr, scope)
        if self.is_own_scope(manager):
            with manager as value:
                if item.optional_vars is not None:
                    self.assign(item.optional_vars, value, scope)
                line = self.graph.reading
                self._with(node, scope, index + 1)
                self.graph.reading = line
            return
        if item.optional_vars is not None:
            self.assign(item.optional_vars, Computed(shown(item.context_expr)), scope)
        self._with(node, scope, index + 1)

    _asyncwith = _with

    def _try(self, node: ast.Try, scope: Scope) -> None:
        self.block(node.body, scope)
        self.block(node.orelse, scope)
        self.block(node.finalbody, scope)

    def _match(self, node: ast.Match, scope: Scope) -> None:
        raise Stop(f"match {shown(node.subject)}")

    def _unknown_after(self, nodes: list[ast.stmt], scope: Scope, why: str) -> None:
        """What the statements assign is not known behind them."""
        for node in (child for top in nodes for child in ast.walk(top)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                scope.set(node.id, Computed(why))


def _loaded(target: ast.expr) -> ast.expr:
    """The target of an augmented assignment as something to read."""
    copied = ast.parse(ast.unparse(target), mode="eval").body
    return ast.copy_location(copied, target)


def _leaves(statements: list[ast.stmt]) -> bool:
    """Whether the statements may leave the block that they are in."""
    kinds = (ast.Return, ast.Break, ast.Continue, ast.Raise, ast.Await, ast.Yield, ast.YieldFrom)
    return any(isinstance(node, kinds) for top in statements for node in ast.walk(top))
