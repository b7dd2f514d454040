"""Behind the commit point: a token that a step in flight is still sampling, and drafts to be verified.

Both lie in slots after a request's known tokens, where the tree has no name for them yet. So that nobody else computes
the same there, or takes the slots, only the sole user of a leaf may go ahead, and it marks the leaf (``lookahead``);
whoever else comes to its end waits. When the tokens have become known, ``publish`` names them.
"""

from __future__ import annotations

from sglite.runtime.cache.node import RadixNode
from sglite.runtime.cache.radix import RadixCache
from sglite.runtime.engine.memory import PagePlanner
from sglite.runtime.engine.request import Request
from sglite.runtime.spec.base import Draft, Proposer


class Ahead:
    """Decides who goes ahead, and tidies up behind them.

    Args:
        cache, memory: the tree and its pages.
        look_ahead: whether rows for unknown tokens are wanted at all.
        proposer: guesses tokens; ``None``: no drafts.
    """

    def __init__(self, cache: RadixCache, memory: PagePlanner, look_ahead: bool, proposer: Proposer | None) -> None:
        self._cache = cache
        self._memory = memory
        self._wanted = look_ahead
        self._proposer = proposer

    def look_ahead(self, request: Request) -> int | None:
        """The position of the token being sampled, if a row for it may be planned now; its slot is then reserved.

        Where forced tokens are sure to follow, the row waits for them: nothing could be sampled from it.
        """
        cursor = request.cursor
        assert cursor is not None
        node, position = cursor.node, len(request.tokens)
        if not self._wanted or node.end != position or not _is_alone(node):
            return None
        if request.ending is not None or request.num_unknown != 1 or request.num_output + 1 >= request.max_new_tokens:
            return None
        if request.grammar is not None and request.grammar.run_follows():
            return None
        if not self._reserve(request, position, position + 1):
            return None
        self._memory.windows.advance(request, position)
        node.lookahead = request
        return position

    def draft(self, request: Request, room: int) -> Draft | None:
        """A guess of at most ``room`` tokens to verify behind the known ones; ``None`` where there cannot be one.

        Constraints, penalties and recurrent state would have to follow every branch: such requests go without.
        """
        if self._proposer is None or request.grammar is not None or request.state_slots:
            return None
        cursor = request.cursor
        assert cursor is not None
        room = min(room, request.max_new_tokens - request.num_output - 1)
        alone = _is_alone(cursor.node) and cursor.depth == request.num_tokens
        if room < 1 or not alone or request.request.sampling.has_penalties:
            return None
        draft = self._proposer.propose(request.tokens, room)
        if draft is None or not 0 < len(draft.tokens) <= room:
            return None
        if not self._reserve(request, request.num_tokens, request.num_tokens + len(draft.tokens)):
            return None
        request.draft = draft
        cursor.node.lookahead = request
        return draft

    def publish(self, request: Request, step: int) -> None:
        """Tokens that steps up to ``step`` computed ahead have become known: give them their place in the tree."""
        cursor = request.cursor
        if cursor is None or cursor.node.lookahead is not request or request.num_tokens == cursor.depth:
            return
        depth = cursor.depth + (1 if request.draft is None else _drafts_kept(request, request.draft, cursor.depth))
        cursor.node.lookahead = None
        held, request.held_pages = request.held_pages, []
        if depth > cursor.depth:
            self._cache.claim(cursor, request.tokens, request.reference, depth)
            used = self._cache.pages_missing(cursor.node, depth)
            if used:
                self._cache.add_pages(cursor.node, held[:used], depth, request.page_table)
            self._cache.plan(cursor.node, depth, step)
            held = held[used:]
        if request.draft is not None:
            self._memory.windows.stored(request, request.num_scheduled, depth)
            self._memory.windows.leave(request, held)
            self._cache.allocator.free(held)
            del request.page_table[-(-depth // self._cache.page_size) :]
            request.pages_sent = min(request.pages_sent, len(request.page_table))
            request.num_scheduled = request.num_computed = depth
            request.draft = None
        self._cache.finish(cursor.node, request.num_computed)

    def withdraw(self, request: Request) -> None:
        """Tokens of ``request`` were taken back: leave their place in the tree, and what nobody else uses of it."""
        cursor = request.cursor
        assert cursor is not None and not request.in_flight
        if cursor.node.lookahead is request:
            cursor.node.lookahead = None
        self._memory.release(request)
        self._cache.retreat(cursor, request.num_tokens)
        request.held_pages, request.page_table, request.pages_sent = [], [], 0
        self._cache.update_table(request.page_table, cursor.node, self._cache.root(request.request.namespace))
        depth = min(request.num_computed, request.num_tokens - 1)  # the last token's logits are wanted again
        request.num_cached = min(request.num_cached, depth)
        request.num_scheduled = request.num_computed = depth

    def _reserve(self, request: Request, start: int, upto: int) -> bool:
        """Hold the memory that positions ``[start, upto)`` need beyond the request's table."""
        if not self._memory.windows.can_grow(request, start, upto):
            return False
        missing = -(-upto // self._cache.page_size) - len(request.page_table)
        pages = self._memory.take(missing) if missing > 0 else []
        if pages is None:
            return False
        request.held_pages = pages
        request.page_table.extend(pages)
        self._memory.windows.grow(request, upto)
        return True


def _is_alone(node: RadixNode) -> bool:
    """Nobody but its user can come to compute, or be computing, what follows ``node``."""
    return node.cursors == 1 and not node.children and node.lookahead is None and node.parent is not None


def _drafts_kept(request: Request, draft: Draft, depth: int) -> int:
    """How many accepted drafts lie in the very slots where they belong; the rest is computed again."""
    kept = 0
    for index, (guess, parent, token) in enumerate(
        zip(draft.tokens, draft.parents, request.tokens[depth:], strict=False)
    ):
        if guess != token or parent != index - 1:
            break
        kept += 1
    return kept
