"""Constraints read in a process of their own, which can be ended.

    compiler ── spec ──▶ client ── socket ──▶ process     lower, serialise, try the native compile
             ◀─ Written ─       ◀──────────               grammar as int32, checks and report as JSON; or a refusal

Reading a constraint is Python, and how long it takes its sender decides. Elsewhere it holds nobody's interpreter, its
memory is bounded, and past its deadline it is killed. What comes back is known to compile, so that the native part,
which lets go of the interpreter and cannot be interrupted, ends in the asking process too.
"""
