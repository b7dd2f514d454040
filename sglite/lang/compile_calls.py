"""Which calls of a previewed program happen, and what they give.

Pure functions and methods are called; a state's methods and the language's expressions are, too; functions of the
program are read in turn; every other call is a symbol and does not happen.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import json
import math
import operator
import re
import string
import sysconfig
import textwrap
from abc import abstractmethod
from collections.abc import Callable
from types import FunctionType, MethodType, ModuleType
from typing import Any

from sglite.lang.compile_values import FIXED, Closure, Evaluator, Scope, Stop, is_symbol, shown, unknown
from sglite.lang.errors import SymbolicValueError
from sglite.lang.ir import Computed, Concat, Op, flatten
from sglite.lang.spelling import Blocks
from sglite.lang.trace import TraceState
from sglite.lang.values import join
from sglite.lang.writer import ForkGroup

_PURE_NAMES = (
    "abs all any ascii bin bool bytes chr complex dict divmod enumerate float format frozenset hex int isinstance "
    "issubclass len list max min oct ord pow range repr reversed round set slice sorted str sum tuple zip"
)
_PURE = frozenset(getattr(builtins, name) for name in _PURE_NAMES.split())
_PURE_MODULES = frozenset(module.__name__ for module in (json, math, operator, re, string, textwrap))
_EFFECTS = frozenset({"dump", "load", "setitem", "delitem", "iadd", "iconcat"})
_LANGUAGE = frozenset({f"sglite.lang.{room}" for room in ("expressions", "choices", "values", "tool_loop")})
_LIBRARIES = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))
_PASSED_ON = (asyncio.wait_for, asyncio.shield, asyncio.ensure_future, asyncio.create_task)
_READS = frozenset({"get", "keys", "values", "items", "index", "count", "copy", "union", "intersection", "difference"})
_MAX_DEPTH = 60


class Caller(Evaluator):
    """Attributes and calls."""

    @abstractmethod
    def body(self, closure: Closure, values: dict[str, Any]) -> Any:
        """What a call of ``closure`` returns."""

    @abstractmethod
    def function(self, function: Callable[..., Any]) -> Closure | None:
        """A user's function as something to read."""

    def _attribute(self, node: ast.Attribute, scope: Scope) -> Any:
        whole = self.value(node.value, scope)
        if isinstance(whole, (ModuleType, TraceState, ForkGroup, Blocks, *FIXED, list, dict, set, type)):
            if (
                isinstance(whole, ModuleType)
                and node.attr not in vars(whole)
                and not whole.__name__.startswith("sglite")
            ):
                return Computed(shown(node))
            return getattr(whole, node.attr, Computed(shown(node)))
        if is_symbol(whole) or isinstance(whole, Closure):
            return Computed(shown(node))
        plain = vars(whole).get(node.attr) if hasattr(whole, "__dict__") else None
        return Computed(shown(node)) if plain is None else plain

    def _call(self, node: ast.Call, scope: Scope) -> Any:
        if isinstance(node.func, ast.Attribute):
            special = self._text_method(node, scope)
            if special is not None:
                return special
        callee = self.value(node.func, scope)
        args = self._elements(node.args, scope)
        kwargs: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self.value(keyword.value, scope)
            if keyword.arg is not None:
                kwargs[keyword.arg] = value
            elif isinstance(value, dict):
                kwargs.update(value)
            else:
                return Computed(shown(node))
        return self.call(callee, args, kwargs, node)

    def _text_method(self, node: ast.Call, scope: Scope) -> Any:
        """``"sep".join(...)`` and ``"{}".format(...)`` with symbols in them are expressions to append."""
        assert isinstance(node.func, ast.Attribute)
        if node.func.attr not in ("join", "format") or not isinstance(node.func.value, (ast.Constant, ast.Name)):
            return None
        text = self.value(node.func.value, scope)
        if not isinstance(text, str):
            return None
        args = self._elements(node.args, scope)
        if node.func.attr == "join":
            items = self.items(args[0]) if len(args) == 1 else None
            return join(items, text) if items is not None and any(is_symbol(i) for i in items) else None
        kwargs = {k.arg: self.value(k.value, scope) for k in node.keywords if k.arg is not None}
        if not any(is_symbol(value) for value in (*args, *kwargs.values())):
            return None
        ops: list[Op] = []
        for index, (before, name, spec, _) in enumerate(string.Formatter().parse(text)):
            ops.extend(flatten(before))
            if name is not None:
                key: Any = index if name == "" else int(name) if name.isdigit() else name
                known = args[key] if isinstance(key, int) and key < len(args) else kwargs.get(key, Computed(str(key)))
                ops.extend(flatten(known if is_symbol(known) else format(known, spec or "")))
        return Concat(tuple(ops))

    def call(self, callee: Any, args: list[Any], kwargs: dict[str, Any], node: ast.AST) -> Any:
        """What a call gives, if it may happen."""
        if isinstance(callee, Closure):
            return self._read(callee, args, kwargs, node)
        if isinstance(callee, MethodType) and isinstance(callee.__self__, (TraceState, ForkGroup, Blocks)):
            return self._language(callee, args, kwargs, node)
        if str(getattr(callee, "__module__", "")).startswith("asyncio."):
            return self._waited(callee, args, node)
        if getattr(callee, "__module__", None) in _LANGUAGE and not isinstance(callee, type):
            return self._language(callee, args, kwargs, node)
        parts = [*args, *kwargs.values()]
        if self._is_pure(callee):
            if isinstance(callee, type) and issubclass(callee, (list, tuple)) and len(args) == 1:
                items = self.items(args[0])
                return Computed(shown(node)) if items is None else self._known(lambda: callee(items), [], node)
            shallow = callee in (len, enumerate, zip, reversed)
            parts = [p for p in parts if is_symbol(p)] if shallow else parts
            plain = [len(a) if isinstance(a, ForkGroup) and callee is len else a for a in args]
            if callee is len and args and isinstance(args[0], ForkGroup):
                return plain[0]
            result = self._known(lambda: callee(*args, **kwargs), parts, node)
            return list(result) if isinstance(result, (enumerate, zip, reversed)) else result
        owner = getattr(callee, "__self__", None)
        if inspect.isbuiltin(callee) and self._may_change(owner, callee.__name__):
            return (
                callee(*args, **kwargs)
                if id(owner) in self._made
                else self._known(lambda: callee(*args, **kwargs), [owner, *parts], node)
            )
        if isinstance(callee, FunctionType) and not _is_library(callee):
            closure = self.function(callee)
            if closure is not None:
                return self._read(closure, args, kwargs, node)
        return Computed(shown(node))

    @staticmethod
    def _waited(callee: Any, args: list[Any], node: ast.AST) -> Any:
        """What waiting with asyncio's own functions gives: calls of coroutines have been followed already."""
        if callee is asyncio.gather:
            return list(args)
        if callee is asyncio.sleep:
            return args[1] if len(args) > 1 else None
        return args[0] if callee in _PASSED_ON and args else Computed(shown(node))

    def _language(self, callee: Any, args: list[Any], kwargs: dict[str, Any], node: ast.AST) -> Any:
        """A call of the language's own; one that has to look at a symbol ends the preview."""
        try:
            return callee(*(self._callable(a) for a in args), **{k: self._callable(v) for k, v in kwargs.items()})
        except (TypeError, ValueError) as error:
            if isinstance(error, SymbolicValueError) or any(unknown(part) for part in (*args, *kwargs.values())):
                raise Stop(shown(node)) from error
            raise

    def _is_pure(self, callee: Any) -> bool:
        try:
            if callee in _PURE:
                return True
        except TypeError:
            return False
        module, name = getattr(callee, "__module__", None), getattr(callee, "__name__", "")
        return module in _PURE_MODULES | {"_operator"} and name not in _EFFECTS and not isinstance(callee, type)

    def _may_change(self, owner: Any, method: str) -> bool:
        """Whether a method of a plain object may be called: it changes nothing, or something of the preview's own."""
        if isinstance(owner, FIXED) and not isinstance(owner, type(None)):
            return True
        return isinstance(owner, (list, dict, set)) and (id(owner) in self._made or method in _READS)

    def _read(self, closure: Closure, args: list[Any], kwargs: dict[str, Any], node: ast.AST) -> Any:
        """Follows a call into a function of the program."""
        if self._depth >= _MAX_DEPTH:
            return Computed(shown(node))
        values = self._bound(closure, args, kwargs)
        if values is None:
            return Computed(shown(node))
        self._depth += 1
        try:
            return self.body(closure, values)
        finally:
            self._depth -= 1

    def _bound(self, closure: Closure, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """The parameters of a call; None where they do not fit."""
        spec = closure.node.args
        names = [a.arg for a in (*spec.posonlyargs, *spec.args)]
        values: dict[str, Any] = dict(zip(names, args, strict=False))
        if spec.vararg is not None:
            values[spec.vararg.arg] = tuple(args[len(names) :])
        elif len(args) > len(names):
            return None
        known = {*names, *(a.arg for a in spec.kwonlyargs)}
        values.update({k: v for k, v in kwargs.items() if k in known})
        if spec.kwarg is not None:
            values[spec.kwarg.arg] = {k: v for k, v in kwargs.items() if k not in known}
        for name, default in zip(reversed(names), reversed(spec.defaults), strict=False):
            if name not in values:
                values[name] = self.value(default, closure.scope)
        for argument, given in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
            if argument.arg not in values and given is not None:
                values[argument.arg] = self.value(given, closure.scope)
        return values if known <= values.keys() else None

    def _callable(self, value: Any) -> Any:
        """A function of the program as one that the language may call; it is read, not run."""
        if isinstance(value, FunctionType) and not _is_library(value):
            value = self.function(value) or value
        if not isinstance(value, Closure):
            return value
        closure = value

        def follow(*args: Any, **kwargs: Any) -> Any:
            return self._read(closure, list(args), kwargs, closure.node)

        follow.__name__ = closure.name
        return follow

    def is_own_scope(self, manager: Any) -> bool:
        """Whether a ``with`` is one of the state's."""
        generator = getattr(manager, "gen", None)
        code = getattr(generator, "gi_code", None)
        return code is not None and "/sglite/lang/" in code.co_filename.replace("\\", "/")


def _is_library(function: FunctionType) -> bool:
    """Whether a function is not the program's own."""
    module = function.__module__ or ""
    return module.startswith("sglite.") or function.__code__.co_filename.startswith(_LIBRARIES)
