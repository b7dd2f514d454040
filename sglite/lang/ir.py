"""What a program is made of: operations, and the graph of them that a run leaves behind.

An *operation* is what a user writes (``"text" + gen("x")``): frozen, without identity, reusable in any number of runs.
A *node* is one operation appended to one stream of one run. Edges: ``prev`` is the text edge (the node before it in
prompt order; for the first node of a branch, the fork), ``sources`` are data edges (what a join gathers).

    stream 0   Lit - Gen - Fork ------- Join - Gen
    stream 1                 +- Lit - Gen -+
    stream 2                 +- Lit - Gen -+
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sglite.lang.errors import SymbolicValueError
from sglite.lang.messages import Message, ToolSpec
from sglite.lang.records import NodeRecord as NodeRecord
from sglite.lang.sampling import REST_OF_CONTEXT as REST_OF_CONTEXT
from sglite.lang.sampling import Sampling as Sampling

if TYPE_CHECKING:
    from sglite.lang.choices import ChoicesMethod
    from sglite.lang.typed import TypeSpec


class Expr:
    """Anything that may be appended to a program; ``+`` puts expressions and strings in sequence."""

    __slots__ = ()

    def __add__(self, other: Appendable) -> Concat:
        return Concat(flatten(self) + flatten(other))

    def __radd__(self, other: Appendable) -> Concat:
        return Concat(flatten(other) + flatten(self))


Appendable = str | Expr


@dataclass(frozen=True)
class Concat(Expr):
    """Operations in sequence."""

    ops: tuple[Op, ...]


@dataclass(frozen=True)
class Lit(Expr):
    """Known text."""

    text: str


@dataclass(frozen=True)
class Gen(Expr):
    """Text from the model. ``extra_stop``: stop strings beside those of ``sampling`` or of the run.

    ``type``: what the text is read as. ``check``: refuses a value by an error or by returning False; the text is then
    taken back and written again, up to ``retries`` times. ``whole_turn``: it wants what is left of the context where
    nobody says how many tokens it may take.
    """

    name: str | None
    sampling: Sampling
    extra_stop: tuple[str, ...] = ()
    type: TypeSpec | None = None
    check: Callable[[Any], Any] | None = None
    retries: int = 0
    whole_turn: bool = False
    heal: bool = False
    """The tokens that end the text before it may be other ones: those that the model would have gone through."""

    def __str__(self) -> str:
        parts = [] if self.name is None else [repr(self.name)]
        if self.type is not None:
            parts.append(f"type={getattr(self.type.type, '__name__', self.type.type)}")
        given = str(self.sampling.without_rules() if self.type is not None else self.sampling)
        checks = ", ".join(
            [*([f"retries={self.retries}"] if self.retries else []), *(["heal=True"] if self.heal else [])]
        )
        return f"gen({', '.join(part for part in (*parts, given, checks) if part)})"


@dataclass(frozen=True)
class Reasoned(Expr):
    """A gen whose reasoning, between ``tags``, is kept apart in ``<name>_reasoning_content``."""

    gen: Gen
    tags: tuple[str, str]

    def __str__(self) -> str:
        return f"separate_reasoning({self.gen})"


@dataclass(frozen=True)
class Select(Expr):
    """One of ``choices``: the best by ``method``, or sampled by its scores when ``temperature`` is above 0."""

    name: str | None
    choices: tuple[str, ...]
    method: ChoicesMethod
    temperature: float = 0.0

    def __str__(self) -> str:
        return f"select({self.name!r}, choices={list(self.choices)!r})"


@dataclass(frozen=True)
class RoleBegin(Expr):
    """Opens a turn of ``role``."""

    role: str

    def __str__(self) -> str:
        return f"{self.role}_begin()"


@dataclass(frozen=True)
class RoleEnd(Expr):
    """Closes the open turn, which must be ``role``'s."""

    role: str


@dataclass(frozen=True)
class Media(Expr):
    """An image or a video. ``data``: base64 text of the file; ``num_frames``: how many frames of a video to use."""

    kind: Literal["image", "video"]
    data: str
    num_frames: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}({len(self.data) * 3 // 4} bytes)"


@dataclass(frozen=True)
class Tell(Expr):
    """A finished turn given as a message; where a chat template writes turns, the next ``Ask`` brings its text."""

    message: Message

    def __str__(self) -> str:
        return f"{self.message.get('role')} message"


@dataclass(frozen=True)
class Ask(Expr):
    """Opens the assistant's turn, the prompt being what the model's template makes of the messages and ``tools``.

    ``tool_choice``: "auto", "none", "required" or a tool's name, for back ends that call tools themselves. ``note``:
    text that has to stand in the prompt because the template does not tell of tools.
    """

    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str = "auto"
    note: str = ""

    def __str__(self) -> str:
        return f"ask(tools=[{', '.join(tool.name for tool in self.tools)}])"


@dataclass(frozen=True)
class Reply(Expr):
    """Closes the assistant's turn that ``Ask`` opened; ``message`` is what it comes to."""

    message: Message

    def __str__(self) -> str:
        return "reply"


@dataclass(frozen=True)
class Checkpoint(Expr):
    """A place that ``Rollback`` to ``number`` comes back to."""

    number: int


@dataclass(frozen=True)
class Rollback(Expr):
    """The stream's text is again what it was at the checkpoint of this number."""

    number: int


@dataclass(frozen=True)
class Restart(Expr):
    """A new, empty sequence takes the place of this one; ``keep_system``: it begins with the same system turn."""

    keep_system: bool = True

    def __str__(self) -> str:
        return "compact()"


@dataclass(frozen=True)
class CaptureBegin(Expr):
    """From here on, text belongs to variable ``name`` as well."""

    name: str


@dataclass(frozen=True)
class CaptureEnd(Expr):
    """Ends the innermost capture of ``name`` and gives the variable its value."""

    name: str


@dataclass(frozen=True)
class Fork(Expr):
    """The streams ``children`` start from the text so far."""

    children: tuple[int, ...]

    def __str__(self) -> str:
        return f"fork({len(self.children)})"


@dataclass(frozen=True)
class Join(Expr):
    """What branches produced comes back: their new variables, or their new text in order."""

    mode: Literal["gather_variable", "concate_and_append"]

    def __str__(self) -> str:
        return f"join({self.mode!r})"


class Symbol(Expr):
    """A value that is not known yet: may be appended, but not looked at."""

    __slots__ = ()

    def _refuse(self, *_: object) -> SymbolicValueError:
        return SymbolicValueError(
            f"{self!r} is not known while the program is traced; append it with `s += ...` on its own, "
            "or give trace() a value for it"
        )

    def __eq__(self, other: object) -> bool:
        raise self._refuse()

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise self._refuse()

    def __len__(self) -> int:
        raise self._refuse()

    def __str__(self) -> str:
        raise self._refuse()

    def __format__(self, spec: str) -> str:
        raise self._refuse()


@dataclass(frozen=True, eq=False, repr=False)
class Arg(Symbol):
    """An argument of a traced program."""

    name: str

    def __repr__(self) -> str:
        return f"argument {self.name!r}"


@dataclass(frozen=True, eq=False, repr=False)
class VarRef(Symbol):
    """The value of variable ``name``, which node ``source`` would produce."""

    name: str
    source: int

    def __repr__(self) -> str:
        return f"variable {self.name!r}"


@dataclass(frozen=True, eq=False, repr=False)
class Computed(Symbol):
    """What code of the program, ``source``, will have computed; it is not run for a preview."""

    source: str

    def __repr__(self) -> str:
        return f"`{self.source}`"


@dataclass(frozen=True)
class Dynamic(Expr):
    """From here on, the program depends on what only a run knows: ``source`` decides."""

    source: str

    def __str__(self) -> str:
        return f"dynamic: {self.source}"


Op = (
    Lit
    | Gen
    | Reasoned
    | Select
    | RoleBegin
    | RoleEnd
    | Media
    | Tell
    | Ask
    | Reply
    | Checkpoint
    | Rollback
    | Restart
    | CaptureBegin
    | CaptureEnd
    | Fork
    | Join
    | Arg
    | VarRef
    | Computed
    | Dynamic
)


def flatten(value: object) -> tuple[Op, ...]:
    """The operations of a string or expression, in order.

    Raises ValueError for None and TypeError for anything that is neither string nor expression.
    """
    if isinstance(value, str):
        return (Lit(value),) if value else ()
    if isinstance(value, Concat):
        return value.ops
    if isinstance(value, Expr):
        return (value,)  # type: ignore[return-value]
    if value is None:
        raise ValueError("None cannot be appended to a program; did a helper forget to return its expression?")
    kind = type(value).__name__
    raise TypeError(f"{value!r} ({kind}) cannot be appended to a program; append a str or an expression")


@dataclass(frozen=True)
class Node:
    """One operation in its place; see the module for the edges. ``line``: where the program wrote it, "file.py:12"."""

    id: int
    stream: int
    prev: int | None
    op: Op
    sources: tuple[int, ...] = ()
    line: str = ""


class Graph:
    """The nodes of one run in the order in which they were appended; safe to append to from any thread.

    ``records``: by node id, what a run made of them; empty for a graph that was only compiled. ``program_id``: under
    which the runtime accounts for the run.
    """

    def __init__(self, name: str = "program", program_id: str = "") -> None:
        self.name = name
        self.program_id = program_id
        self.nodes: list[Node] = []
        self.records: dict[int, NodeRecord] = {}
        self.reads: list[tuple[int, int, float]] = []
        """Reads that had to wait: for which node, how many nodes there were at the end, and for how many seconds."""
        self.reading = ""
        """The line that a preview is at: its nodes are from there."""
        self._streams = 0
        self._lock = threading.Lock()

    def new_stream(self) -> int:
        """The next stream's number; the program's own is 0."""
        with self._lock:
            self._streams += 1
            return self._streams - 1

    def add(self, stream: int, prev: int | None, op: Op, sources: tuple[int, ...] = (), line: str = "") -> Node:
        """Appends a node; its id is its index in ``nodes``."""
        with self._lock:
            node = Node(len(self.nodes), stream, prev, op, sources, line)
            self.nodes.append(node)
        return node
