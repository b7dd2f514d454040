"""What the programs of this process share: the event loop's thread, the threads of bodies, the default back end.

``SESSION`` is the language's only process-wide object; ``set_default_backend`` needs one. A forked child gets fresh
threads, since its parent's did not come along.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import Any, Final
from weakref import WeakValueDictionary

from sglite.lang.backends.base import Backend
from sglite.lang.threads import BodyPool, LoopThread
from sglite.lang.tool_threads import ToolThreads


def auto_threads() -> int:
    """How many bodies run at a time when nobody says: they mostly wait, so more than there are cores."""
    return max(96, 16 * (os.cpu_count() or 1))


class Session:
    """See the module."""

    def __init__(self) -> None:
        self.default_backend: Any = None
        self.current: ContextVar[Backend | None] = ContextVar("sglite_backend", default=None)
        """The back end of the program whose body runs here: programs it calls use the same."""
        self.inside: ContextVar[frozenset[str]] = ContextVar("sglite_inside", default=frozenset())
        """The ids of the runs inside of whose bodies and checks this is: threads and tasks that these start, too."""
        self.marks: WeakValueDictionary[str, Any] = WeakValueDictionary()
        """Marks of symbolic values in text, by run; see ``values``."""
        self.loop = LoopThread("sglite-programs")
        self.body_loop = LoopThread("sglite-async-bodies")
        self._make_pools()
        os.register_at_fork(after_in_child=self.renew_threads)

    def renew_threads(self) -> None:
        """New threads, started when first used."""
        self.loop.renew()
        self.body_loop.renew()
        self._make_pools()

    def _make_pools(self) -> None:
        self.bodies = BodyPool(auto_threads(), "sglite-body")
        self.checks = BodyPool(auto_threads(), "sglite-check")
        self.tools = ToolThreads(auto_threads(), "sglite-tool")

    def backend(self, given: Any = None) -> Backend:
        """The back end to use: the given one, else that of the program that runs here, else the default.

        Raises RuntimeError when there is neither, TypeError for an object that is no back end.
        """
        chosen = given
        if given is None:
            chosen = self.current.get() or self.default_backend
        if chosen is None:
            raise RuntimeError("no back end: call sglite.set_default_backend(...) or pass backend=...")
        if isinstance(chosen, Backend):
            return chosen
        if hasattr(chosen, "open_sequence"):
            from sglite.lang.backends.engine import EngineBackend

            return EngineBackend(chosen)
        raise TypeError(f"{chosen!r} is no back end; use an Engine, a RuntimeEndpoint or another sglite back end")


SESSION: Final = Session()
