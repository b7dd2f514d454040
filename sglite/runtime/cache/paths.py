"""What can be read off a path of the tree, from a node up to the root: its pages, and how far it is filled.

Plain functions over nodes; ``page_size`` is that of the tree. ``radix.py`` has the drawing of how nodes share pages.
"""

from __future__ import annotations

from sglite.runtime.cache.node import RadixNode


def first_page(node: RadixNode, page_size: int) -> int:
    """Index of the first page a node owns or would own."""
    return -(-node.start // page_size) if node.continues else node.start // page_size


def pages_to(node: RadixNode, upto: int, page_size: int) -> int:
    """How many pages of its own a node needs to hold its depths below ``upto``."""
    return 0 if upto <= node.start else -(-upto // page_size) - first_page(node, page_size)


def pending(node: RadixNode) -> list[RadixNode]:
    """Nodes on the path to ``node`` that are not wholly planned, deepest first: its last ones."""
    found = []
    while node.parent is not None and node.planned < node.end:
        found.append(node)
        node = node.parent
    return found


def node_at(node: RadixNode, depth: int) -> RadixNode:
    """The node on the path to ``node`` that has the token at ``depth``, which is not behind it."""
    while node.start > depth and node.parent is not None:
        node = node.parent
    return node


def planned_depth(node: RadixNode) -> int:
    """Depth below which the path to ``node`` is computed or in flight."""
    while node.parent is not None and node.planned == node.start:
        node = node.parent
    return node.planned


def copied_page(node: RadixNode, page_size: int) -> int | None:
    """Index of the page that ``add_pages`` would have to copy for ``node``; ``None``: nothing to copy."""
    unfilled = pending(node)
    top = unfilled[-1] if unfilled else None
    if top is None or top.pages or top.continues or top.start % page_size == 0:
        return None
    return top.start // page_size


def copy_source_step(node: RadixNode, page_size: int) -> int:
    """The last step that fills what ``add_pages`` would have to copy for ``node``; -1: nothing to copy.

    A copy runs before the rows of its step: what this very step computes cannot be copied yet.
    """
    index = copied_page(node, page_size)
    if index is None:
        return -1
    first = index * page_size
    step, above = -1, pending(node)[-1].parent
    while above is not None and above.parent is not None and above.end > first:
        step = max(step, above.planned_step)
        above = above.parent
    return step


def split(node: RadixNode, depth: int, page_size: int) -> RadixNode:
    """Cut ``node`` at ``depth``; returns the new upper part. Cursors stay at the lower part, their end."""
    cut = depth - node.start
    parent = node.parent
    assert parent is not None and 0 < cut < len(node.tokens)
    upper = RadixNode(parent, node.tokens[:cut], node.start)
    upper.continues = node.continues
    kept = max(0, pages_to(upper, depth, page_size))
    upper.pages = node.pages[:kept]
    upper.ready, upper.planned = min(node.ready, depth), min(node.planned, depth)
    upper.planned_step, upper.owner = node.planned_step, node.owner
    upper.locks, upper.pins, upper.hints = node.locks, node.pins, node.hints
    upper.last_access = node.last_access
    upper.children = {node.tokens[cut]: node}
    parent.children[upper.tokens[0]] = upper
    node.parent, node.start = upper, depth
    node.tokens, node.pages = node.tokens[cut:], node.pages[kept:]
    node.continues = depth % page_size != 0
    node.ready, node.planned = max(node.ready, depth), max(node.planned, depth)
    return upper


def merge(upper: RadixNode, page_size: int) -> RadixNode | None:
    """The reverse of ``split``: a computed node that nobody stands at and its only child become one; returns it.

    None where they must stay apart: somebody may come back to the border, or they hold two versions of a page.
    """
    if upper.parent is None or upper.cursors or len(upper.children) != 1 or upper.ready < upper.end:
        return None
    (lower,) = upper.children.values()
    if upper.checkpoint or upper.wants_checkpoint or upper.lookahead is not None or upper.hints != lower.hints:
        return None
    if not lower.continues and upper.end % page_size:
        return None
    lower.tokens, lower.pages = upper.tokens + lower.tokens, upper.pages + lower.pages
    lower.start, lower.continues, lower.parent = upper.start, upper.continues, upper.parent
    lower.planned_step = max(lower.planned_step, upper.planned_step)
    lower.last_access = max(lower.last_access, upper.last_access)
    upper.parent.children[lower.tokens[0]] = lower
    upper.parent = None
    return lower
