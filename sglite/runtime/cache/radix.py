"""The radix tree: every known prefix, computed or being computed, at token granularity over paged memory.

A node is a run of tokens at depths ``[start, end)``. Two watermarks say how far it is filled:

    start ......... ready ......... planned ......... end
          computed        in flight        a promise: its owner will compute it

A cursor is a place at the end of a node, held by a request or a program; it locks the node and all its ancestors.

Pages. Page index i holds depths ``[i*ps, (i+1)*ps)`` of one path. It belongs to the node that contains depth
``i*ps``; a node whose start lies inside a page either *continues* in its parent's page (at most one child does, the
first) or owns a copy of it, which takes the page's place in its own table:

    ps = 4    parent  [0, 6)   pages A B          A: 0 1 2 3   B: 4 5 . .
              child 1 [6, 9)   continues, page C  B: . . 6 7   C: 8
              child 2 [6, 7)   owns a copy of B   D: 4 5 6

Splitting a node inside a page therefore leaves the page with the parent, and the lower part continues in it.

Promises: a locked node is never evicted and its ancestors are locked; only unlocked leaves are evicted; two children
of a node differ in their first token; a node with ``planned < end`` has an owner; every page of the tree is counted
as cached by the allocator. Plain integers, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sglite.runtime.cache.allocator import PageAllocator
from sglite.runtime.cache.checkpoints import Checkpoints
from sglite.runtime.cache.eviction import EvictionPolicy, NextUseEviction
from sglite.runtime.cache.node import Cursor, Match, RadixNode, common_prefix
from sglite.runtime.cache.paths import first_page, merge, pages_to, pending, split


class RadixCache:
    """The tree over one page pool.

    Args:
        allocator: owns the pages; pages given to nodes become its ``cached`` ones.
        page_size: positions a page.
        eviction: which unlocked leaf goes first.
        states: slots of recurrent state by group; with any, a prefix can be resumed only at a checkpoint.
        enabled: without it nothing computed is kept after its request ends (requests in flight still share).
    """

    def __init__(
        self,
        allocator: PageAllocator,
        page_size: int,
        eviction: EvictionPolicy | None = None,
        *,
        states: dict[str, PageAllocator] | None = None,
        enabled: bool = True,
    ) -> None:
        if page_size < 1:
            raise ValueError(f"page_size must be at least 1, got {page_size}")
        self.allocator = allocator
        self.page_size = page_size
        self.enabled = enabled
        self.evicted_pages = 0
        self.pinned_pages = 0
        """Pages of nodes that only pins lock."""
        self.states = states or {}
        self.checkpoints = Checkpoints(self.states)
        self._eviction = eviction or NextUseEviction()
        self._roots: dict[str, RadixNode] = {}
        self._nothing = RadixNode(None, [], 0)
        self._clock = 0
        self._unlocked_pages = 0

    # --- looking ----------------------------------------------------------------------------------------------

    @property
    def num_available(self) -> int:
        """Pages that are free or could be evicted."""
        return self.allocator.num_free + self._unlocked_pages

    def root(self, namespace: str = "") -> RadixNode:
        """The root of a namespace: prefixes are shared only inside one."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = RadixNode(None, [], 0)
            root.namespace = namespace
        return root

    def match(self, tokens: Sequence[int], namespace: str = "", start: RadixNode | None = None) -> Match:
        """Longest known prefix of ``tokens``, from the root or from ``start`` (a node on its path). Changes nothing."""
        node = start or self._roots.get(namespace) or self._nothing
        depth = planned = node.end
        while (child := node.children.get(tokens[depth]) if depth < len(tokens) else None) is not None:
            depth += common_prefix(child.tokens, tokens, depth)
            planned = min(depth, child.planned)
            if planned < depth:
                return Match(child, depth, planned, child)
            node = child
            if depth < child.end:
                break
        return Match(node, depth, planned, None)

    def path(self, node: RadixNode) -> list[RadixNode]:
        """Nodes from below the root to ``node``."""
        nodes = []
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def update_table(self, table: list[int], node: RadixNode, since: RadixNode) -> int:
        """Bring a page table that was right for ``since``, a node above, up to date for ``node``.

        Returns the first index that changed (or the table's length). Pending parts have no entry yet.
        """
        parts = []
        while node is not since and node.parent is not None:
            parts.append(node)
            node = node.parent
        changed = len(table)
        for part in reversed(parts):
            if part.pages:
                first = first_page(part, self.page_size)
                changed = min(changed, first)
                table[first:] = part.pages
        return changed

    def nodes(self) -> Iterator[RadixNode]:
        """All nodes but the roots, parents first."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            if node.parent is not None:
                yield node

    # --- cursors ----------------------------------------------------------------------------------------------

    def open(self, namespace: str = "") -> Cursor:
        """A cursor at the root."""
        root = self.root(namespace)
        root.locks += 1
        root.cursors += 1
        return Cursor(root)

    def pin(self, cursor: Cursor) -> Cursor:
        """A second cursor, a pin, where what is computed on the way to ``cursor`` ends: it holds on to no promise."""
        node = cursor.node
        while node.parent is not None and node.ready == node.start:
            node = node.parent
        if node.ready < node.end:
            node = split(node, node.ready, self.page_size)
        node.cursors += 1
        above: RadixNode | None = node
        while above is not None:
            self._lock(above, 1, 1)
            above = above.parent
        return Cursor(node, is_pin=True)

    def follow(self, cursor: Cursor, tokens: Sequence[int], limit: int | None = None) -> RadixNode | None:
        """Move ``cursor`` down along ``tokens`` as far as they are computed or in flight, at most to depth ``limit``.

        Splits the last node where the match ends inside it. Returns the node it is blocked on: one that goes on with
        these tokens but whose owner has yet to compute them; ``None`` when the tree knows nothing more.
        """
        limit = len(tokens) if limit is None else limit
        self._clock += 1
        while cursor.depth < limit:
            node = cursor.node
            child = node.children.get(tokens[node.end])
            if child is None:
                return None
            shared = min(common_prefix(child.tokens, tokens, child.start), limit - child.start)
            if child.planned < child.start + shared:
                return child
            if shared < len(child.tokens):
                child = split(child, child.start + shared, self.page_size)
            self._descend(cursor, child)
        return None

    def claim(self, cursor: Cursor, tokens: Sequence[int], owner: object, upto: int | None = None) -> RadixNode:
        """Promise that ``owner`` computes ``tokens`` from the cursor's depth to ``upto``, and move the cursor there.

        The caller has followed first, so no child begins with the next token. The sole user of a leaf extends it in
        place; anybody else gets a child.
        """
        node = cursor.node
        rest = list(tokens[node.end : upto])
        assert rest and rest[0] not in node.children, (node, rest[:1])
        if node.parent is not None and node.cursors == 1 and not node.children and not node.checkpoint:
            node.tokens.extend(rest)
            node.end += len(rest)
            node.owner = owner
            return node
        child = RadixNode(node, rest, node.end)
        child.owner = owner
        child.continues = node.end % self.page_size != 0 and not any(c.continues for c in node.children.values())
        node.children[rest[0]] = child
        self._descend(cursor, child)
        return child

    def close(self, cursor: Cursor) -> None:
        """Unlock. What the cursor's node promised and nobody computed is cut off; what was computed stays.

        To be pinned is not to be used: a pin leaves the time of the last use as it was. What only a pin kept apart from
        the rest of its sequence becomes one node with it, so that long programs are not long chains of nodes.
        """
        node = cursor.node
        node.cursors -= 1
        self._clock += not cursor.is_pin
        above: RadixNode | None = node
        while above is not None:
            self._lock(above, -1, -cursor.is_pin)
            if not cursor.is_pin:
                above.last_access = self._clock
            above = above.parent
        self._cut_promises(node)
        merged = merge(node, self.page_size) if cursor.is_pin and not self.states else None
        if merged is not None and merged.is_evictable:
            self._eviction.add(merged)

    def retreat(self, cursor: Cursor, depth: int) -> None:
        """Move ``cursor`` up to ``depth`` on its path: what lay below goes, as far as nobody else came to it."""
        tail = node = cursor.node
        while node.start >= depth and node.parent is not None:
            node = node.parent
        if node.start < depth < node.end:
            node = split(node, depth, self.page_size)
        self._clock += 1
        node.cursors += 1
        tail.cursors -= 1
        cursor.node = node
        below = tail
        while below is not node:
            assert below.parent is not None
            self._lock(below, -1)
            below.last_access = self._clock
            below = below.parent
        while tail is not node and tail.is_evictable:
            above = tail.parent
            assert above is not None
            self._remove(tail)
            tail = above

    def hint(self, node: RadixNode, by: int) -> None:
        """``by`` (1 or -1) more sequences are known to come back to ``node``: its path is evicted after others.

        Nothing happens when the node is no longer in the tree; its hints left with it.
        """
        leaf = node
        while node.parent is not None:
            node.hints += by
            node = node.parent
        if leaf.is_evictable:
            self._eviction.add(leaf)

    # --- filling ----------------------------------------------------------------------------------------------

    def pages_missing(self, node: RadixNode, upto: int) -> int:
        """Pages that the path to ``node`` lacks to hold depths below ``upto``."""
        missing = 0
        while node.parent is not None and node.planned < node.end:  # a loop, not pending(): asked twice a row and step
            needed = pages_to(node, min(upto, node.end), self.page_size) - len(node.pages)
            if needed > 0:
                missing += needed
            node = node.parent
        return missing

    def add_pages(
        self, node: RadixNode, pages: list[int], upto: int, table: list[int]
    ) -> tuple[int, tuple[int, int, int] | None]:
        """Give held ``pages`` to the pending nodes on the path to ``node``, to hold depths below ``upto``.

        ``table`` is the page table of the path and gets the new entries. Returns the first index that changed and,
        when the first new page is a copy, ``(source page, new page, tokens to copy)``.
        """
        copied: tuple[int, int, int] | None = None
        changed = len(table)
        for part in reversed(pending(node)):
            n = pages_to(part, min(upto, part.end), self.page_size) - len(part.pages)
            if n <= 0:
                continue
            first = first_page(part, self.page_size)
            if not part.pages and first * self.page_size < part.start:
                copied = table[first], pages[0], part.start - first * self.page_size
            for page in pages[:n]:
                self.allocator.cache(page)
            part.pages.extend(pages[:n])
            pages = pages[n:]
            changed = min(changed, first + len(part.pages) - n)
            table[first:] = part.pages
        assert not pages, f"{len(pages)} pages too many for depth {upto} of {node}"
        return changed, copied

    def plan(self, node: RadixNode, upto: int, step: int) -> None:
        """The path to ``node`` will be computed below depth ``upto`` once step ``step`` has run."""
        for part in pending(node):
            if part.start < upto:
                part.planned = max(part.planned, min(upto, part.end))
                part.planned_step = step

    def finish(self, node: RadixNode, upto: int) -> None:
        """The path to ``node`` is computed below depth ``upto``."""
        while node.parent is not None and node.ready < node.end:
            if node.start < upto:
                node.ready = max(node.ready, min(upto, node.end))
            node = node.parent

    # --- giving up --------------------------------------------------------------------------------------------

    def evict(self, n: int) -> int:
        """Free at least ``n`` pages of unlocked leaves if there are that many; returns how many were freed."""
        freed = 0
        while freed < n:
            victim = self._eviction.pop()
            if victim is None:
                break
            assert isinstance(victim, RadixNode)
            freed += len(victim.pages)
            self._remove(victim)
        self.evicted_pages += freed
        return freed

    def flush(self) -> int:
        """Drop everything unlocked; returns the pages freed."""
        return self.evict(self.allocator.total + 1)

    def renew(self) -> None:
        """Nothing computed so far is matched any more: what cursors hold on to stays theirs alone, the rest goes."""
        self.flush()
        self._roots = {}

    # --- inside -----------------------------------------------------------------------------------------------

    def _lock(self, node: RadixNode, by: int, pins: int = 0) -> None:
        """Where locks change: keeps count of the pages that are unlocked, and of those that only pins lock."""
        if node.locks == 0:
            self._unlocked_pages -= len(node.pages)
        elif node.locks == node.pins:
            self.pinned_pages -= len(node.pages)
        node.locks += by
        node.pins += pins
        if node.locks == 0:
            self._unlocked_pages += len(node.pages)
        elif node.locks == node.pins:
            self.pinned_pages += len(node.pages)

    def _descend(self, cursor: Cursor, child: RadixNode) -> None:
        self._lock(child, 1)
        child.last_access = self._clock
        cursor.node.cursors -= 1
        child.cursors += 1
        cursor.node = child

    def _cut_promises(self, node: RadixNode) -> None:
        """After an unlock at ``node``: drop what is promised and not computed, where nobody else is interested."""
        while node.parent is not None and node.locks == 0 and not node.children:
            parent = node.parent
            if node.ready == node.start or not self.enabled:
                self._remove(node)
            elif node.ready < node.end:
                self._trim(node)
                break
            else:
                break
            node = parent
        if node.is_evictable:
            self._eviction.add(node)
        self._forget_root(node)

    def _forget_root(self, node: RadixNode) -> None:
        """Drop the root of a namespace that nothing is left of, so that salts cannot pile up."""
        if node is self._roots.get(node.namespace) and node.locks == 0 and not node.children:
            del self._roots[node.namespace]

    def _trim(self, node: RadixNode) -> None:
        """Cut an unlocked leaf down to what is computed."""
        keep = pages_to(node, node.ready, self.page_size)
        self._unlocked_pages -= len(node.pages) - keep
        self.allocator.free(node.pages[keep:])
        del node.pages[keep:]
        del node.tokens[node.ready - node.start :]
        node.end = node.planned = node.ready
        node.owner = None

    def _remove(self, node: RadixNode) -> None:
        """Take an unlocked leaf out of the tree and free what it owns."""
        parent = node.parent
        assert parent is not None and node.is_evictable
        del parent.children[node.tokens[0]]
        self._unlocked_pages -= len(node.pages)
        self.allocator.free(node.pages)
        self.checkpoints.drop(node)
        if node.hints:
            self.hint(parent, -node.hints)
        node.parent = None
        if parent.is_evictable:
            self._eviction.add(parent)
        self._forget_root(parent)
