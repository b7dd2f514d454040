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

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from sglite.runtime.cache.allocator import PageAllocator
from sglite.runtime.cache.eviction import EvictionPolicy, LRUEviction
from sglite.runtime.cache.node import Cursor, Match, RadixNode, common_prefix


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
        self.states = states or {}
        self._checkpoints: OrderedDict[RadixNode, None] = OrderedDict()
        self._eviction = eviction or LRUEviction()
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
                first = self.first_page(part)
                changed = min(changed, first)
                table[first:] = part.pages
        return changed

    def first_page(self, node: RadixNode) -> int:
        """Index of the first page a node owns or would own."""
        return -(-node.start // self.page_size) if node.continues else node.start // self.page_size

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

    def fork_computed(self, cursor: Cursor) -> Cursor:
        """A second cursor, where what is computed on the way to ``cursor`` ends: it holds on to no promise."""
        node = cursor.node
        while node.parent is not None and node.ready == node.start:
            node = node.parent
        if node.ready < node.end:
            node = self._split(node, node.ready)
        node.cursors += 1
        above: RadixNode | None = node
        while above is not None:
            above.locks += 1
            above = above.parent
        return Cursor(node)

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
                child = self._split(child, child.start + shared)
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
        """Unlock. What the cursor's node promised and nobody computed is cut off; what was computed stays."""
        node = cursor.node
        node.cursors -= 1
        self._clock += 1
        above: RadixNode | None = node
        while above is not None:
            above.locks -= 1
            above.last_access = self._clock
            if above.locks == 0:
                self._unlocked_pages += len(above.pages)
            above = above.parent
        self._cut_promises(node)

    def retreat(self, cursor: Cursor, depth: int) -> None:
        """Move ``cursor`` up to ``depth`` on its path: what lay below goes, as far as nobody else came to it."""
        tail = node = cursor.node
        while node.start >= depth and node.parent is not None:
            node = node.parent
        if node.start < depth < node.end:
            node = self._split(node, depth)
        self._clock += 1
        node.cursors += 1
        tail.cursors -= 1
        cursor.node = node
        below = tail
        while below is not node:
            assert below.parent is not None
            below.locks -= 1
            below.last_access = self._clock
            if below.locks == 0:
                self._unlocked_pages += len(below.pages)
            below = below.parent
        while tail is not node and tail.is_evictable:
            above = tail.parent
            assert above is not None
            self._remove(tail)
            tail = above

    # --- filling ----------------------------------------------------------------------------------------------

    def pages_missing(self, node: RadixNode, upto: int) -> int:
        """Pages that the path to ``node`` lacks to hold depths below ``upto``."""
        pending = self._pending(node)
        return sum(max(0, self._pages_to(part, min(upto, part.end)) - len(part.pages)) for part in pending)

    def add_pages(
        self, node: RadixNode, pages: list[int], upto: int, table: list[int]
    ) -> tuple[int, tuple[int, int, int] | None]:
        """Give held ``pages`` to the pending nodes on the path to ``node``, to hold depths below ``upto``.

        ``table`` is the page table of the path and gets the new entries. Returns the first index that changed and,
        when the first new page is a copy, ``(source page, new page, tokens to copy)``.
        """
        copied: tuple[int, int, int] | None = None
        changed = len(table)
        for part in reversed(self._pending(node)):
            n = self._pages_to(part, min(upto, part.end)) - len(part.pages)
            if n <= 0:
                continue
            first = self.first_page(part)
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
        for part in self._pending(node):
            if part.start < upto:
                part.planned = max(part.planned, min(upto, part.end))
                part.planned_step = step

    def finish(self, node: RadixNode, upto: int) -> None:
        """The path to ``node`` is computed below depth ``upto``."""
        while node.parent is not None and node.ready < node.end:
            if node.start < upto:
                node.ready = max(node.ready, min(upto, node.end))
            node = node.parent

    def copy_source_step(self, node: RadixNode) -> int:
        """The last step that fills what ``add_pages`` would have to be copied for ``node``; -1: nothing to copy.

        A copy runs before the rows of its step: what this very step computes cannot be copied yet.
        """
        pending = self._pending(node)
        top = pending[-1] if pending else None
        if top is None or top.pages or top.continues or top.start % self.page_size == 0:
            return -1
        first = top.start // self.page_size * self.page_size
        step, above = -1, top.parent
        while above is not None and above.parent is not None and above.end > first:
            step = max(step, above.planned_step)
            above = above.parent
        return step

    def planned_depth(self, node: RadixNode) -> int:
        """Depth below which the path to ``node`` is computed or in flight."""
        while node.parent is not None and node.planned == node.start:
            node = node.parent
        return node.planned

    # --- recurrent state --------------------------------------------------------------------------------------

    def save_checkpoint(self, node: RadixNode, slots: dict[str, int], step: int) -> None:
        """Keep held ``slots`` (one per group) as the recurrent state at the end of ``node``, once ``step`` has run."""
        self._drop_checkpoint(node)
        node.checkpoint_step = step
        for group, slot in slots.items():
            self.states[group].cache(slot)
        node.checkpoint = slots
        node.wants_checkpoint = False
        self._checkpoints[node] = None

    def drop_checkpoints(self, since: int) -> None:
        """Forget the checkpoints that steps from ``since`` on were to write."""
        for node in [node for node in self._checkpoints if node.checkpoint_step >= since]:
            self._drop_checkpoint(node)

    def restorable(self, node: RadixNode, limit: int) -> RadixNode:
        """The deepest node on the path, ending at ``limit`` or above, whose recurrent state is kept; else the root."""
        while node.parent is not None and not (node.checkpoint and node.end <= limit):
            node = node.parent
        if node.parent is not None:
            self._checkpoints.move_to_end(node)
        return node

    def take_state_slots(self, step: int) -> dict[str, int] | None:
        """One held slot of every state group for ``step``; ``None``: all in use.

        Gives up the least recently used checkpoints if need be, but none that ``step`` itself is going to write.
        """
        while any(states.num_free == 0 for states in self.states.values()):
            oldest = next((node for node in self._checkpoints if node.checkpoint_step < step), None)
            if oldest is None:
                return None
            self._drop_checkpoint(oldest)
        return {group: states.allocate(1)[0] for group, states in self.states.items()}

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

    def split_at(self, node: RadixNode, depth: int) -> RadixNode:
        """A node that ends at ``depth``, which lies in or at the end of ``node``."""
        return node if depth == node.end else self._split(node, depth)

    # --- inside -----------------------------------------------------------------------------------------------

    def _pending(self, node: RadixNode) -> list[RadixNode]:
        """Nodes on the path to ``node`` that are not wholly planned, deepest first: its last ones."""
        pending = []
        while node.parent is not None and node.planned < node.end:
            pending.append(node)
            node = node.parent
        return pending

    def _pages_to(self, node: RadixNode, upto: int) -> int:
        """How many pages of its own a node needs to hold its depths below ``upto``."""
        return 0 if upto <= node.start else -(-upto // self.page_size) - self.first_page(node)

    def _descend(self, cursor: Cursor, child: RadixNode) -> None:
        if child.locks == 0:
            self._unlocked_pages -= len(child.pages)
        child.locks += 1
        child.last_access = self._clock
        cursor.node.cursors -= 1
        child.cursors += 1
        cursor.node = child

    def _split(self, node: RadixNode, depth: int) -> RadixNode:
        """Cut ``node`` at ``depth``; returns the new upper part. Cursors stay at the lower part, their end."""
        cut = depth - node.start
        parent = node.parent
        assert parent is not None and 0 < cut < len(node.tokens)
        upper = RadixNode(parent, node.tokens[:cut], node.start)
        upper.continues = node.continues
        kept = max(0, self._pages_to(upper, depth))
        upper.pages = node.pages[:kept]
        upper.ready, upper.planned = min(node.ready, depth), min(node.planned, depth)
        upper.planned_step, upper.owner = node.planned_step, node.owner
        upper.locks, upper.last_access = node.locks, node.last_access
        upper.children = {node.tokens[cut]: node}
        parent.children[upper.tokens[0]] = upper
        node.parent, node.start = upper, depth
        node.tokens, node.pages = node.tokens[cut:], node.pages[kept:]
        node.continues = depth % self.page_size != 0
        node.ready, node.planned = max(node.ready, depth), max(node.planned, depth)
        return upper

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
        if node.parent is None and node.locks == 0 and not node.children:
            self._roots.pop(node.namespace, None)

    def _trim(self, node: RadixNode) -> None:
        """Cut an unlocked leaf down to what is computed."""
        keep = self._pages_to(node, node.ready)
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
        self._drop_checkpoint(node)
        node.parent = None
        if parent.is_evictable:
            self._eviction.add(parent)
        self._forget_root(parent)

    def _drop_checkpoint(self, node: RadixNode) -> None:
        for group, slot in node.checkpoint.items():
            self.states[group].free([slot])
        node.checkpoint = {}
        self._checkpoints.pop(node, None)
