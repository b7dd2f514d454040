"""Programs that are driven over HTTP: their sequences by name, and the lease that frees them when a client is gone.

A *session* is a program's sequences on this server. It begins with its first ``open`` node and ends with its last
``close``, or when nobody has called or renewed it for the length of its lease: then its generations are aborted and its
sequences given back, so a client that crashed leaks nothing. While a call is being answered its lease does not run.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from sglite.runtime.engine.engine import Engine
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.in_flight import InFlight
from sglite.runtime.serve.program_call import Call
from sglite.runtime.serve.program_nodes import PROGRAM_VERSION, Abort, AnyNode, CallBody, Close, Fork, Open
from sglite.runtime.serve.program_sequence import ServedSequence

__all__ = ["PROGRAM_VERSION", "Programs"]

MAX_SESSIONS = 4096
MAX_SEQUENCES = 4096
"""Of one program at a time."""
MAX_ALL_SEQUENCES = 65_536
_REMEMBERED = 4096
"""Expired programs whose clients are told so."""
_RETRY_SECONDS = 1


class Session:
    """One program. ``open_calls``: answers under way."""

    def __init__(self, name: str, lease_s: float) -> None:
        self.name = name
        self.lease_s = lease_s
        self.sequences: dict[str, ServedSequence] = {}
        self.closing: set[ServedSequence] = set()
        """Have no name any more and something left to do."""
        self.over = False
        self.last_call = -1
        self.open_calls = 0
        self.used_at = 0.0
        self.timer: asyncio.TimerHandle | None = None


class Programs:
    """All sessions. For the server's event loop."""

    def __init__(self, engine: Engine, in_flight: InFlight) -> None:
        self._engine = engine
        self._in_flight = in_flight
        self._sessions: dict[str, Session] = {}
        self._expired: OrderedDict[str, None] = OrderedDict()
        self._num_expired = 0

    def counts(self) -> dict[str, int]:
        """Sessions and sequences that are open, and the sessions that have expired so far."""
        return {"sessions": len(self._sessions), "sequences": self._num_sequences(), "expired": self._num_expired}

    def _num_sequences(self) -> int:
        return sum(len(session.sequences) + len(session.closing) for session in self._sessions.values())

    def close(self) -> None:
        """Ends every session."""
        for session in list(self._sessions.values()):
            self._kill(session, Refused(503, "the server is shutting down"))

    # --- calls ------------------------------------------------------------------------------------------------

    def accept(self, body: CallBody) -> tuple[Call, Session | None]:
        """Takes a call in: all of its nodes, in order, or by ``Refused`` none. The answer begins at once."""
        session = self._sessions.get(body.program)
        self._check(body, session)
        if session is None and body.nodes:
            session = self._sessions[body.program] = Session(body.program, body.lease_s)
        call = Call(body.nodes)
        if session is None:
            return call, None
        session.lease_s = body.lease_s
        session.last_call = session.last_call if body.call is None else body.call
        session.open_calls += 1
        self._touch(session)
        for node in body.nodes:
            self._take(session, call, node)
        return call, session

    def left(self, call: Call, session: Session | None) -> None:
        """The answer of a call is over, or nobody reads it any more: then what it began is aborted."""
        call.gone = True
        if session is None:
            return
        session.open_calls -= 1
        for sequence in (*session.sequences.values(), *session.closing):
            sequence.forsake(call)
        self._touch(session)

    def renew(self, names: Sequence[str]) -> list[str]:
        """Their clients are alive. Returns the names of those that are not known (any more)."""
        unknown = []
        for name in names:
            session = self._sessions.get(name)
            if session is None:
                unknown.append(name)
            else:
                self._touch(session)
        return unknown

    def drop(self, name: str, seqs: Sequence[str]) -> int:
        """Ends sequences of a program at once. Returns how many of them there were."""
        session = self._sessions.get(name)
        found = [] if session is None else [session.sequences.pop(seq) for seq in seqs if seq in session.sequences]
        for sequence in found:
            sequence.kill(Refused(410, "the sequence was closed"))
        if session is not None:
            self._end_if_empty(session)
        return len(found)

    def _check(self, body: CallBody, session: Session | None) -> None:
        """Everything that can be said of a call before any of it is carried out."""
        if session is not None and body.call is not None and body.call <= session.last_call:
            message = f"call {body.call} of program {body.program!r} has been made already; give it a higher number"
            raise Refused(409, message, param="call")
        known = set(session.sequences) if session is not None else set()
        before, ids = len(known), set()
        for index, node in enumerate(body.nodes):
            where = f"nodes[{index}]"
            if isinstance(node, Abort):
                continue
            if not isinstance(node, Open) and node.seq not in known:
                raise self._unknown(body.program, node.seq, where, session)
            new = [node.seq] if isinstance(node, Open) else node.into if isinstance(node, Fork) else []
            for name in new:
                if name in known:
                    raise Refused(400, f"{where}: sequence {name!r} is open already", param=where)
                known.add(name)
            if isinstance(node, Close):
                known.discard(node.seq)
            if node.id in ids:
                raise Refused(400, f"{where}: id {node.id!r} is given twice", param=where)
            ids.update([node.id] if node.id else [])
        self._check_room(len(known), before, session)

    def _check_room(self, after: int, before: int, session: Session | None) -> None:
        if after > MAX_SEQUENCES:
            raise Refused(429, f"a program may have {MAX_SEQUENCES} sequences open at a time", code="too_many")
        total = self._num_sequences()
        full = total + after - before > MAX_ALL_SEQUENCES
        if full or (session is None and after and len(self._sessions) >= MAX_SESSIONS):
            message = f"{len(self._sessions)} programs with {total} sequences are open; try again later"
            raise Refused(429, message, code="too_many", retry_after=_RETRY_SECONDS)

    def _unknown(self, program: str, sequence: str, where: str, session: Session | None) -> Refused:
        if session is None and program in self._expired:
            message = f"program {program!r} was idle for longer than its lease and has been closed; run it again"
            return Refused(410, message, code="program_expired")
        what = f"program {program!r}" if session is None else f"sequence {sequence!r} of program {program!r}"
        return Refused(404, f"{where}: {what} is not open here; begin with an 'open' node", code="unknown_sequence")

    def _take(self, session: Session, call: Call, node: AnyNode) -> None:
        if isinstance(node, Abort):
            sequence = session.sequences.get(node.seq)
            if sequence is not None:
                sequence.abort(node.target)
            call.finish(node)
            return
        if isinstance(node, Open):
            self._new(session, node.seq).begin(self._engine.open_sequence(session.name))
        sequence = session.sequences[node.seq]
        branches = [self._new(session, name) for name in node.into] if isinstance(node, Fork) else []
        if isinstance(node, Close):
            session.closing.add(session.sequences.pop(node.seq))
        sequence.queue(call, node, branches)

    def _new(self, session: Session, name: str) -> ServedSequence:
        tokenizer = self._engine.tokenizer
        assert tokenizer is not None

        def end(sequence: ServedSequence) -> None:
            session.closing.discard(sequence)
            sequence.kill(Refused(410, "the sequence was closed"))
            self._end_if_empty(session)

        made = session.sequences[name] = ServedSequence(self._engine, tokenizer, self._in_flight, end)
        return made

    # --- the end ----------------------------------------------------------------------------------------------

    def _touch(self, session: Session) -> None:
        if session.over:
            return
        loop = asyncio.get_running_loop()
        session.used_at = loop.time()
        if session.timer is None:
            session.timer = loop.call_later(session.lease_s, self._look, session)
        self._end_if_empty(session)

    def _look(self, session: Session) -> None:
        """The lease may have run out: not if the program was used meanwhile."""
        loop = asyncio.get_running_loop()
        session.timer = None
        left = session.used_at + session.lease_s - loop.time()
        if session.open_calls or left > 0:
            session.timer = loop.call_later(max(left, session.lease_s / 2), self._look, session)
            return
        self._num_expired += 1
        self._expired[session.name] = None
        if len(self._expired) > _REMEMBERED:
            self._expired.popitem(last=False)
        self._kill(session, Refused(410, "the program's lease has run out", code="program_expired"))

    def _end_if_empty(self, session: Session) -> None:
        if not (session.over or session.sequences or session.closing or session.open_calls):
            self._kill(session, Refused(410, "the program has ended"))

    def _kill(self, session: Session, why: Refused) -> None:
        session.over = True
        if session.timer is not None:
            session.timer.cancel()
        if self._sessions.get(session.name) is session:
            del self._sessions[session.name]
        left = (*session.sequences.values(), *session.closing)
        session.sequences, session.closing = {}, set()
        for sequence in left:
            sequence.kill(why)
