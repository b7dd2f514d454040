"""What expressions of a previewed program are worth: known values, the program's own states, and symbols.

See ``compile``; ``compile_calls`` says which calls happen.
"""

from __future__ import annotations

import ast
import builtins
import operator
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import FunctionType
from typing import Any, cast

from sglite.lang.ir import Computed, Concat, Expr, Symbol, flatten
from sglite.lang.spelling import Blocks
from sglite.lang.trace import TraceState
from sglite.lang.writer import ForkGroup

FIXED = (str, bytes, int, float, complex, bool, tuple, frozenset, range, type(None), re.Pattern, re.Match)
_MAX_ITEMS = 10_000
_MAX_SIZE = 10_000_000
_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.BitOr: operator.or_, ast.BitAnd: operator.and_,
    ast.BitXor: operator.xor, ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip


class Stop(Exception):
    """The preview cannot go on: ``why`` is the source that decides."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
        self.line = ""


@dataclass
class Scope:
    """Names of a function's body; ``own``: not of something that existed before the preview."""

    names: dict[str, Any]
    outer: Scope | None
    globals: dict[str, Any] = field(default_factory=dict)
    own: bool = True

    def get(self, name: str) -> Any:
        """What a name stands for; a symbol for one that is not known."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        if name in self.globals:
            return self.globals[name]
        return getattr(builtins, name, Computed(name))

    def set(self, name: str, value: Any) -> None:
        """Binds a name here; what existed before the preview stays as it is."""
        self.names[name] = value


@dataclass(frozen=True)
class Closure:
    """A function of the program: its syntax and where it was made. ``function``: itself, if it exists already."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    scope: Scope
    name: str
    function: FunctionType | None


def is_symbol(value: object) -> bool:
    """Whether a value is not known, as a whole or in part."""
    return isinstance(value, (Symbol, Concat))


def shown(node: ast.AST) -> str:
    """Source of a node, shortened."""
    text = ast.unparse(node).partition("\n")[0]
    return text if len(text) <= 60 else text[:57] + "..."


def names_state(nodes: Sequence[ast.AST], scope: Scope) -> bool:
    """Whether the code names something of the program's own: a state, or a collection with one."""
    found = (scope.get(n.id) for top in nodes for n in ast.walk(top) if isinstance(n, ast.Name))
    return any(_holds_state(value) for value in found)


def _holds_state(value: object, depth: int = 2) -> bool:
    if isinstance(value, (TraceState, ForkGroup, Blocks, Closure)):
        return True
    return depth > 0 and isinstance(value, (list, tuple)) and any(_holds_state(v, depth - 1) for v in value[:100])


class Evaluator(ABC):
    """Expressions; ``body`` and ``function`` are the statements' side."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}
        """Collections made by the preview, which alone may be changed; kept, so that their ids stay theirs."""
        self._depth = 0

    @abstractmethod
    def body(self, closure: Closure, values: dict[str, Any]) -> Any:
        """What a call of ``closure`` returns."""

    @abstractmethod
    def call(self, callee: Any, args: list[Any], kwargs: dict[str, Any], node: ast.AST) -> Any:
        """What a call gives, if it may happen."""

    @abstractmethod
    def function(self, function: Callable[..., Any]) -> Closure | None:
        """A user's function as something to read."""

    def imported(self, name: str, whole: bool) -> Any:
        """A module that is there already; a symbol for one that importing would run."""
        wanted = name if whole else name.partition(".")[0]
        return sys.modules.get(wanted, Computed(f"import {name}"))

    def value(self, node: ast.expr, scope: Scope) -> Any:
        """The value of an expression."""
        handler = getattr(self, f"_{type(node).__name__.lower()}", None)
        result = Computed(shown(node)) if handler is None else handler(node, scope)
        if isinstance(result, (list, dict, set)) and handler is not None and type(node) in _MAKERS:
            self._made[id(result)] = result
        return result

    def _known(self, compute: Callable[[], Any], parts: Iterable[Any], node: ast.AST) -> Any:
        """``compute()`` if all parts are known and it works; else a symbol."""
        if any(unknown(part) for part in parts):
            return Computed(shown(node))
        try:
            result = compute()
        except Exception as error:
            return Computed(f"{shown(node)} ({type(error).__name__})")
        if isinstance(result, (list, dict, set)):
            self._made[id(result)] = result
        return result

    # --- literals and names ---

    def _constant(self, node: ast.Constant, scope: Scope) -> Any:
        return node.value

    def _name(self, node: ast.Name, scope: Scope) -> Any:
        return scope.get(node.id)

    def _namedexpr(self, node: ast.NamedExpr, scope: Scope) -> Any:
        value = self.value(node.value, scope)
        scope.set(node.target.id, value)
        return value

    def _tuple(self, node: ast.Tuple, scope: Scope) -> Any:
        return tuple(self._elements(node.elts, scope))

    def _list(self, node: ast.List, scope: Scope) -> Any:
        return self._elements(node.elts, scope)

    def _set(self, node: ast.Set, scope: Scope) -> Any:
        values = self._elements(node.elts, scope)
        return self._known(lambda: set(values), values, node)

    def _elements(self, nodes: Sequence[ast.expr], scope: Scope) -> list[Any]:
        values: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                items = self.items(self.value(node.value, scope))
                values.extend([Computed(shown(node))] if items is None else items)
            else:
                values.append(self.value(node, scope))
        return values

    def _dict(self, node: ast.Dict, scope: Scope) -> Any:
        result: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                more = self.value(value, scope)
                if not isinstance(more, dict):
                    return Computed(shown(node))
                result.update(more)
            else:
                known = self.value(key, scope)
                if is_symbol(known):
                    return Computed(shown(node))
                result[known] = self.value(value, scope)
        return result

    def _joinedstr(self, node: ast.JoinedStr, scope: Scope) -> Any:
        parts: list[Any] = []
        for part in node.values:
            value = self.value(part, scope)
            parts.append(value)
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
        return Concat(tuple(op for part in parts for op in flatten(part)))

    def _formattedvalue(self, node: ast.FormattedValue, scope: Scope) -> Any:
        value = self.value(node.value, scope)
        spec = "" if node.format_spec is None else self.value(node.format_spec, scope)
        if is_symbol(value) and not spec and node.conversion == -1:
            return value
        convert: dict[int, Callable[[Any], Any]] = {115: str, 114: repr, 97: ascii}
        change = convert.get(node.conversion, lambda x: x)
        safe = isinstance(value, (*FIXED, list, dict, set))
        if not safe:
            return Computed(shown(node.value))
        return self._known(lambda: format(change(value), spec), [value, spec], node.value)

    # --- operations ---

    def operate(self, op: ast.AST, left: Any, right: Any, node: ast.AST) -> Any:
        """``left op right``: sums of text and symbols are expressions to append."""
        if isinstance(op, ast.Add) and (_appendable(left) and _appendable(right)):
            if isinstance(left, str) and isinstance(right, str):
                return left + right
            return Concat(flatten(left) + flatten(right))
        large = isinstance(op, (ast.Mult, ast.Pow, ast.LShift)) and _size(left) * _size(right) > _MAX_SIZE
        plain = isinstance(left, _PLAIN) and isinstance(right, _PLAIN)
        if large or not (plain or isinstance(op, (ast.Is, ast.IsNot))):
            return Computed(shown(node))
        apply = _OPERATORS.get(type(op))
        return Computed(shown(node)) if apply is None else self._known(lambda: apply(left, right), [left, right], node)

    def _binop(self, node: ast.BinOp, scope: Scope) -> Any:
        return self.operate(node.op, self.value(node.left, scope), self.value(node.right, scope), node)

    def _compare(self, node: ast.Compare, scope: Scope) -> Any:
        left = self.value(node.left, scope)
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.value(comparator, scope)
            if isinstance(op, (ast.In, ast.NotIn)) and isinstance(right, TraceState):
                return Computed(shown(node))
            result = self.operate(op, left, right, node)
            if is_symbol(result) or not result:
                return result
            left = right
        return True

    def _boolop(self, node: ast.BoolOp, scope: Scope) -> Any:
        stops_at = isinstance(node.op, ast.Or)
        value: Any = None
        for part in node.values:
            value = self.value(part, scope)
            if is_symbol(value):
                return Computed(shown(node))
            if bool(value) == stops_at:
                return value
        return value

    def _unaryop(self, node: ast.UnaryOp, scope: Scope) -> Any:
        value = self.value(node.operand, scope)
        apply: dict[type[ast.AST], Callable[[Any], Any]] = {
            ast.Not: operator.not_, ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert,
        }  # fmt: skip
        return self._known(lambda: apply[type(node.op)](value), [value], node)

    def _ifexp(self, node: ast.IfExp, scope: Scope) -> Any:
        test = self.value(node.test, scope)
        if is_symbol(test):
            return Computed(shown(node))
        return self.value(node.body if test else node.orelse, scope)

    def _subscript(self, node: ast.Subscript, scope: Scope) -> Any:
        whole = self.value(node.value, scope)
        key = self.value(node.slice, scope)
        if isinstance(whole, (TraceState, ForkGroup)) and not is_symbol(key):
            return whole[key]
        if not isinstance(whole, (str, bytes, list, tuple, dict, range)) or is_symbol(key):
            return Computed(shown(node))
        try:
            return whole[key]
        except Exception as error:
            return Computed(f"{shown(node)} ({type(error).__name__})")

    def _slice(self, node: ast.Slice, scope: Scope) -> Any:
        bounds = [None if part is None else self.value(part, scope) for part in (node.lower, node.upper, node.step)]
        return Computed(shown(node)) if any(is_symbol(b) for b in bounds) else slice(*bounds)

    def _await(self, node: ast.Await, scope: Scope) -> Any:
        return self.value(node.value, scope)

    # --- comprehensions and functions ---

    def items(self, iterable: Any) -> list[Any] | None:
        """What a loop goes over; None where that is not known."""
        if not isinstance(iterable, (str, bytes, list, tuple, dict, set, frozenset, range, ForkGroup, *_VIEWS)):
            return None
        return list(islice(cast(Iterable[Any], iterable), _MAX_ITEMS))

    def _comprehension(self, node: Any, scope: Scope) -> list[tuple[Any, ...]] | None:
        inner = Scope({}, scope, scope.globals)
        results: list[tuple[Any, ...]] = []
        parts = (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,)

        def over(index: int) -> bool:
            if index == len(node.generators):
                results.append(tuple(self.value(part, inner) for part in parts))
                return len(results) <= _MAX_ITEMS
            generator = node.generators[index]
            items = self.items(self.value(generator.iter, inner))
            if items is None:
                return False
            for item in items:
                self.assign(generator.target, item, inner)
                tests = [self.value(test, inner) for test in generator.ifs]
                if any(is_symbol(test) for test in tests):
                    return False
                if all(tests) and not over(index + 1):
                    return False
            return True

        return results if over(0) else None

    def _listcomp(self, node: ast.ListComp | ast.GeneratorExp, scope: Scope) -> Any:
        results = self._comprehension(node, scope)
        return Computed(shown(node)) if results is None else [value for (value,) in results]

    _generatorexp = _listcomp

    def _setcomp(self, node: ast.SetComp, scope: Scope) -> Any:
        results = self._comprehension(node, scope)
        values = [] if results is None else [value for (value,) in results]
        return Computed(shown(node)) if results is None else self._known(lambda: set(values), values, node)

    def _dictcomp(self, node: ast.DictComp, scope: Scope) -> Any:
        results = self._comprehension(node, scope)
        if results is None or any(is_symbol(key) for key, _ in results):
            return Computed(shown(node))
        return dict(results)

    def _lambda(self, node: ast.Lambda, scope: Scope) -> Any:
        return Closure(node, scope, "<lambda>", None)

    def assign(self, target: ast.expr, value: Any, scope: Scope) -> None:
        """Binds a name, unpacks, or changes something that the preview itself has made."""
        if isinstance(target, ast.Name):
            scope.set(target.id, value)
        elif isinstance(target, (ast.Tuple, ast.List)):
            items = self.items(value)
            for index, part in enumerate(target.elts):
                plain = part.value if isinstance(part, ast.Starred) else part
                known = items is not None and not isinstance(part, ast.Starred) and index < len(items)
                self.assign(plain, items[index] if known and items is not None else Computed(shown(part)), scope)
        elif isinstance(target, ast.Subscript):
            whole, key = self.value(target.value, scope), self.value(target.slice, scope)
            if (isinstance(whole, TraceState) or id(whole) in self._made) and not is_symbol(key):
                whole[key] = value
        elif isinstance(target, ast.Attribute):
            whole = self.value(target.value, scope)
            if isinstance(whole, TraceState):
                setattr(whole, target.attr, value)


_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()), enumerate, zip, reversed)
_MAKERS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


_PLAIN = (*FIXED, list, dict, set)


def _size(value: Any) -> int:
    """How large a value is, for products."""
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else abs(value) if isinstance(value, int) else 1


def _appendable(value: Any) -> bool:
    return isinstance(value, (str, Expr))


def unknown(value: Any, depth: int = 3) -> bool:
    """Whether a value has a symbol in it."""
    if is_symbol(value) or isinstance(value, (TraceState, Closure)):
        return True
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return any(unknown(v, depth - 1) for v in value)
    return bool(depth and isinstance(value, dict) and any(unknown(v, depth - 1) for v in value.values()))
