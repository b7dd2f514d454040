"""A Jinja sandbox in which a template can neither reach out nor run away.

Jinja's immutable sandbox keeps a template from the interpreter's internals. This module adds bounds: a
`Meter` counts work (loop turns, calls, characters built) and the clock, and what could build something huge
in one operation is checked before it runs. Past a bound the template ends with an error; it never hangs and
never fills the memory.
"""

from __future__ import annotations

import functools
import json
import re
import string
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from jinja2 import Template, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from sglite.runtime.text.template_nodes import CHARGE, CONCAT, STEP, TURNS, GenerationBlock, Instrument

MAX_TEXT = 16 << 20  # characters in one value or in the whole output
MAX_WORK = 64_000_000  # characters built, plus STEP for each loop turn and call
MAX_ITEMS = 1 << 18  # elements in one value that is printed
MAX_SECONDS = 5.0
MAX_RANGE = 100_000
MAX_WIDTH = 10_000  # padding, indentation
MAX_INT_BITS = 4096

# fmt: off
_FILTERS = (
    "abs", "attr", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first",
    "float", "forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length",
    "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe",
    "select", "selectattr", "slice", "sort", "string", "striptags", "sum", "title", "trim", "truncate",
    "unique", "upper", "urlencode", "wordcount",
)
# fmt: on
_PRINTING = frozenset({"e", "escape", "forceescape", "join", "string", "striptags", "format", "title", "trim", "lower"})
_WIDTH_METHODS = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})
_PERCENT_WIDTH = re.compile(r"%[^a-zA-Z%]*(?:\d{5,}|\*)")


_DICT_ATTRIBUTES = frozenset(dir(dict))
_HARMLESS = frozenset({str, int, float, bool, list, dict})
"""Types whose values are no functions."""


class TemplateOverrun(SecurityError):
    """A template asked for more than the bounds of this module allow."""


class Meter:
    """The work one rendering may still do."""

    def __init__(self) -> None:
        self._left = MAX_WORK
        self._deadline = time.monotonic() + MAX_SECONDS

    def charge(self, work: int) -> None:
        """Count `work` units. Raises `TemplateOverrun` past the work or the time allowed."""
        self._left -= work
        if self._left < 0:
            raise TemplateOverrun(f"the template does more than {MAX_WORK} units of work")
        if time.monotonic() > self._deadline:
            raise TemplateOverrun(f"the template runs longer than {MAX_SECONDS:g} s")

    def measure(self, value: object) -> int:
        """About how many characters `value` prints; charges for looking. Shared parts count as often as they print."""
        if isinstance(value, str):
            self.charge(len(value))
            return len(value)
        size, items, stack = 0, 0, [value]
        while stack:
            item = stack.pop()
            items += 1
            if isinstance(item, str | bytes):
                size += len(item)
            elif isinstance(item, dict):
                stack += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple | set | frozenset):
                stack += item
            if size > MAX_TEXT or items + len(stack) > MAX_ITEMS:
                raise TemplateOverrun(f"a printed value has over {MAX_TEXT} characters or {MAX_ITEMS} elements")
        self.charge(size + items)
        return size + items


class _Metered:
    """See `BoundedSandbox.metered`."""

    def __init__(self, active: threading.local) -> None:
        self._active = active

    def __enter__(self) -> None:
        self._outer = getattr(self._active, "meter", None)
        self._active.meter = Meter()

    def __exit__(self, *_: object) -> None:
        self._active.meter = self._outer


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """The environment in which chat templates run. One rendering per thread at a time; templates may be shared."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        self._active = threading.local()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationBlock, loopcontrols],
            finalize=self._finalize,
        )
        internal = {CHARGE: self._charge, TURNS: self._turns, CONCAT: self._concat}
        filters: dict[str, Any] = self.filters
        known = {name: self._metered(name, filters[name]) for name in _FILTERS}
        self.filters = {**known, **internal, "tojson": self._tojson}
        tests: dict[str, Any] = dict(self.tests)
        self.tests.update({name: self._metered("", test) for name, test in tests.items()})
        own = {"range": _range, "raise_exception": _raise_exception, "strftime_now": _strftime_now}
        for name in ("lipsum", "cycler"):
            self.globals.pop(name, None)
        self.globals.update({**own, "dict": _make_dict, "namespace": _Namespace})

    def load(self, source: str) -> Template:
        """Compile a template. Raises jinja2's `TemplateError`, or what the Python compiler raises."""
        with self.metered():
            tree = Instrument().visit(self.parse(source))
            return Template.from_code(self, self.compile(tree), dict(self.globals))  # every rendering copies them

    def metered(self) -> _Metered:
        """Everything that runs inside of it, on this thread, shares one fresh `Meter`."""
        return _Metered(self._active)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Count every call, and check the methods of strings that can build large ones."""
        __self._active.meter.charge(STEP)
        if type(__obj) is Macro:  # the template's own: nothing to check, and all that it is given are values
            kwargs.pop("_block_vars", None)
            kwargs.pop("_loop_vars", None)
            return __obj(__context.eval_ctx, *args, **kwargs)
        if __obj is _Namespace:
            kwargs.pop("_block_vars", None)
            kwargs.pop("_loop_vars", None)
            return _Namespace(*args, **kwargs)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            __self._check_method(owner, getattr(__obj, "__name__", ""), args, kwargs)
        elif isinstance(owner, bytes):
            raise TemplateOverrun("a template may not work on bytes")
        return super().call(__context, __obj, *args, **kwargs)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """See Jinja; a short way to what can only be an item of a dictionary, or a plain value of a namespace."""
        if type(obj) is dict and attribute in obj and attribute not in _DICT_ATTRIBUTES:
            return obj[attribute]
        if type(obj) is _Namespace and not attribute.startswith("_"):
            value = object.__getattribute__(obj, "_Namespace__attrs").get(attribute)
            if type(value) in _HARMLESS:
                return value
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja's own wrapper of `str.format`, with a bound on what the format may build."""
        if isinstance(value, str | list | dict):
            return None
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            fields = [spec for _, _, spec, _ in string.Formatter().parse(value.__self__) if spec is not None]
            if any("{" in spec or re.search(r"\d{5}", spec) for spec in fields):
                raise TemplateOverrun("a format with a nested or five-digit width is not allowed")
            size = self._active.meter.measure([*args, *kwargs.values()])
            self._allow(len(value.__self__) + len(fields) * (size + MAX_WIDTH))
            return wrapped(*args, **kwargs)

        return bounded

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*`, `**` and `%`, refused where the result would be out of bounds."""
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            self._allow(len(left) + len(right))
        elif operator == "*":
            self._check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * max(right, 0))
        elif operator == "%" and isinstance(left, str):
            self._check_percent(left, right)
        return self.binop_table[operator](left, right)

    def _allow(self, size: int) -> None:
        """Charge for a value of `size` characters or items before it is built."""
        if size > MAX_TEXT:
            raise TemplateOverrun(f"the template builds a value of {size} characters or items; {MAX_TEXT} are allowed")
        self._active.meter.charge(size)

    def _check_product(self, left: Any, right: Any) -> None:
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, str | bytes | list | tuple) and isinstance(count, int):
                self._allow(len(sequence) * max(count, 0))
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())

    def _check_percent(self, template: str, values: Any) -> None:
        if _PERCENT_WIDTH.search(template):
            raise TemplateOverrun("a % format with a width of five digits or more, or '*', is not allowed")
        self._allow(len(template) + (self._active.meter.measure(values) + MAX_WIDTH) * template.count("%"))

    def _check_method(self, owner: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._active.meter.charge(len(owner))
        if name in _WIDTH_METHODS:
            width = max([8, *(abs(a) for a in [*args, *kwargs.values()] if isinstance(a, int))])
            self._allow(len(owner) * width if name == "expandtabs" else len(owner) + width)
        elif name == "replace" and len(args) >= 2 and all(isinstance(a, str) for a in args[:2]):
            self._allow(len(owner) + owner.count(args[0]) * len(args[1]))
        elif name == "join" and args and isinstance(args[0], list | tuple | dict | str):
            self._allow(self._active.meter.measure(args[0]) + len(owner) * len(args[0]))
        elif name in ("translate", "join"):
            raise TemplateOverrun(f"str.{name} on this argument is not allowed in a template")

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` (a filter, or with no name a test) with its input counted and its arguments checked."""
        at = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            self._active.meter.charge(STEP)
            value, rest = args[at], [*args[at + 1 :], *kwargs.values()]
            if name in _PRINTING:
                value = list(self._counted(value)) if isinstance(value, Iterator) else value
                self._check_printing(name, value, rest)
            elif name == "replace" and len(rest) >= 2:
                text = str(value)
                self._allow(len(text) + text.count(str(rest[0])) * len(str(rest[1])))
            elif name in ("indent", "batch", "slice", "truncate"):
                self._check_width(value, rest)
            elif name == "sum" and any(isinstance(a, list | tuple) for a in rest):
                raise TemplateOverrun("sum over sequences is not allowed in a template")
            return function(*args[:at], self._counted(value) if name else value, *args[at + 1 :], **kwargs)

        return metered

    def _check_printing(self, name: str, value: Any, rest: list[Any]) -> None:
        size = self._active.meter.measure(value)
        if name == "join":
            separator = max((len(str(a)) for a in rest if isinstance(a, str)), default=0)
            self._allow(size + separator * (len(value) if hasattr(value, "__len__") else 0))
        elif name == "format":
            self._check_percent(str(value), rest)

    def _check_width(self, value: Any, rest: list[Any]) -> None:
        widths = [a for a in rest if isinstance(a, int)] + [len(a) for a in rest if isinstance(a, str)]
        width = max([4, *(abs(w) for w in widths)])
        if width > MAX_WIDTH:
            raise TemplateOverrun(f"a width of {width} is not allowed; {MAX_WIDTH} is")
        lines = value.count("\n") + 1 if isinstance(value, str) else 1
        self._allow(lines * width)

    def _counted(self, value: Any) -> Any:
        """`value`, paid for: at once when its length is known, else item by item."""
        if type(value) not in _HARMLESS and isinstance(value, Iterator):
            return self._counted_items(value)
        self._active.meter.charge(len(value) if hasattr(value, "__len__") else 1)
        return value

    def _counted_items(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self._active.meter.charge(STEP)
            yield item

    def _finalize(self, value: Any) -> Any:
        if not isinstance(value, Undefined):
            self._active.meter.measure(value)
        return value

    @pass_context
    def _charge(self, _context: Context, work: int) -> None:
        self._active.meter.charge(work)

    @pass_context
    def _turns(self, _context: Context, value: Any) -> Any:
        return self._counted(value)

    @pass_context
    def _concat(self, _context: Context, values: list[Any]) -> str:
        self._allow(self._active.meter.measure(values))
        return "".join(map(str, values))

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON without Jinja's HTML escapes, as chat templates expect."""
        size = self._active.meter.measure(value)
        if isinstance(indent, int):
            self._check_width("", [indent])
            self._allow(size * (max(indent, 0) + 1))
        elif indent is not None:
            raise TemplateOverrun("tojson takes an integer indent")
        if separators is not None:
            self._allow(size * max(map(len, separators)))
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Namespace(Namespace):
    """Jinja's `namespace()` without names that begin with an underscore."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        attributes = dict(*args, **kwargs)
        for name in attributes:
            if type(name) is not str or name[:1] == "_":
                _check_name(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace may not hold {name!r}; names with a leading underscore are reserved")


def _check_bits(bits: int) -> None:
    if bits > MAX_INT_BITS:
        raise TemplateOverrun(f"the template computes a number of {bits} bits; {MAX_INT_BITS} are allowed")


def _range(*bounds: int) -> range:
    result = range(*bounds)
    # len() itself overflows for the largest ranges.
    if not result or (result[-1] - result[0]) // result.step < MAX_RANGE:
        return result
    raise TemplateOverrun(f"range{bounds} is longer than the {MAX_RANGE} allowed")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > 256 or re.search(r"%[^a-zA-Z%]*\d{3}", form):
        raise TemplateOverrun("strftime_now takes a format of at most 256 characters without wide fields")
    return datetime.now().strftime(form)
